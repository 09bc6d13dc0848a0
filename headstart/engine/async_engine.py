"""The engine behind asyncio: a thread runs the steps, coroutines submit requests and receive their outputs."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any
from uuid import uuid4

from headstart.checkpoints.generation import GenerationConfig
from headstart.checkpoints.tokenizer import Tokenizer
from headstart.engine.args import EngineArgs
from headstart.engine.engine import Engine, EngineStats
from headstart.engine.intake import Prompt
from headstart.engine.outputs import RequestOutput
from headstart.engine.params import SamplingParams
from headstart.engine.request import Request
from headstart.errors import HeadstartError

logger = logging.getLogger(__name__)

_Item = RequestOutput | BaseException


class _Stream:
    """Where one request's outputs go: an asyncio queue on the loop of whoever asked."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.items: asyncio.Queue[_Item] = asyncio.Queue()
        self.known = False  # whether the engine's thread has seen it, and will therefore answer

    def put(self, item: _Item) -> None:
        """Hand an item over from the engine's thread; a loop that has closed no longer listens."""
        try:
            self.loop.call_soon_threadsafe(self.items.put_nowait, item)
        except RuntimeError:
            if not self.loop.is_closed():
                raise


class AsyncEngine:
    """An engine for many concurrent callers.

    Args:
        engine: the engine; it belongs to this object from now on.

    Attributes:
        errored: what the engine's thread died of; every further request fails with it.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.errored: BaseException | None = None
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._streams: dict[str, _Stream] = {}
        # Requests between `generate`'s call and its end, by how many readers there are; touched by callers only.
        self._num_open = 0
        self._aborted_early: set[str] = set()
        self._preparing: set[str] = set()
        self._draining = False
        self._stopped = False
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="headstart-engine", daemon=True)
        self._thread.start()

    @classmethod
    def from_model(cls, model: str | None = None, **settings: Any) -> "AsyncEngine":
        """Load a model; the settings are the fields of `EngineArgs`."""
        return cls(Engine(EngineArgs(model=model, **settings)))

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        if self.engine.tokenizer is None:
            raise HeadstartError("this model runs without a tokenizer")
        return self.engine.tokenizer

    @property
    def generation_config(self) -> GenerationConfig:
        """The checkpoint's recommendations for sampling."""
        return self.engine.checkpoint.generation_config

    @property
    def model_name(self) -> str:
        """What the model is called: the hub id or the directory's name."""
        return self.engine.checkpoint.name

    @property
    def max_model_len(self) -> int:
        """The longest prompt plus output, in tokens."""
        return self.engine.max_model_len

    @property
    def exact(self) -> bool:
        """Whether the methods in force leave the model's distribution unchanged."""
        return self.engine.exact

    def stats(self) -> EngineStats:
        """The engine's counters now."""
        return self.engine.stats()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """A text's token ids, as the engine reads prompts. Safe to call from any thread."""
        return self.engine.encode(text, add_special_tokens)

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams,
        request_id: str | None = None,
        *,
        cache_salt: str | None = None,
        arrival_time: float | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Run a request; yields as its `output_kind` says, the last item has `finished`.

        Closing the iterator, or cancelling the task that reads it, aborts the request and frees its pages.

        Args:
            prompt: text, token ids, or a dict of either.
            sampling_params: how to choose the tokens.
            request_id: a name of your own, for `abort`.
            cache_salt: requests share cached keys only with requests of the same salt.
            arrival_time: when the request came, in seconds of `time.monotonic()` (default: now).

        Raises:
            InvalidRequestError: the request cannot be served.
            HeadstartError: the engine is draining, stopped or broken.
        """
        self._refuse_if_closed()
        request_id = request_id or uuid4().hex
        arrival_time = time.monotonic() if arrival_time is None else arrival_time
        stream = _Stream()
        finished = False
        self._num_open += 1
        self._preparing.add(request_id)
        try:
            # Tokenizing a long prompt takes long enough to be felt by everybody else on the loop.
            request = await asyncio.to_thread(
                self.engine.prepare, request_id, prompt, sampling_params, cache_salt, arrival_time
            )
            self._commands.put(lambda: self._submit(request, stream))
            while not finished:
                # The thread may have ended before the command reached it: then nobody else will say so.
                if self._closed and stream.items.empty() and not stream.known:
                    raise self._closing_error()
                item = await stream.items.get()
                if isinstance(item, BaseException):
                    finished = True
                    raise item
                finished = item.finished
                yield item
        finally:
            self._num_open -= 1
            self._preparing.discard(request_id)
            self._aborted_early.discard(request_id)
            if not finished:
                self._commands.put(lambda: self._abort(request_id, stream))

    async def abort(self, request_id: str) -> None:
        """End a request before the next step; its reader gets a last item with `finish_reason="abort"`."""
        if request_id in self._preparing:
            self._aborted_early.add(request_id)
        self._commands.put(lambda: self._abort(request_id))

    async def drain(self) -> None:
        """Take no more requests, and wait for those that run."""
        self._draining = True
        while (self._num_open or self.engine.has_work) and self._thread.is_alive():
            await asyncio.sleep(0.02)

    async def shutdown(self) -> None:
        """Stop the thread; requests that still run are aborted."""
        self._draining = True
        self._stopped = True
        self._commands.put(lambda: None)
        await asyncio.to_thread(self._thread.join)

    def _refuse_if_closed(self) -> None:
        if self.errored is not None or self._closed or self._draining:
            raise self._closing_error()

    def _closing_error(self) -> HeadstartError:
        """Why no request is taken any more."""
        if self.errored is not None:
            return HeadstartError(f"the engine has stopped because of an error: {self.errored}")
        return HeadstartError("the engine is shutting down and takes no more requests")

    def _work(self) -> None:
        """The engine's thread: commands first, then a step, until told to stop."""
        try:
            while not self._stopped:
                self._obey()
                for output in self.engine.step() if self.engine.has_work else ():
                    self._deliver(output)
        except BaseException as error:
            logger.exception("the engine has stopped because of an error")
            self.errored = error
        finally:
            self._close()

    def _close(self) -> None:
        """Tell everybody who still waits: first those that run, then those whose command was not reached."""
        if self.errored is None:
            for request_id in list(self._streams):
                self._abort(request_id)
        for stream in self._streams.values():
            stream.put(self._closing_error())
        self._streams.clear()
        self._closed = True
        while not self._commands.empty():
            self._commands.get()()

    def _submit(self, request: Request, stream: _Stream) -> None:
        """Hand a request to the engine; a refusal goes to its reader alone."""
        stream.known = True
        if self._closed:
            stream.put(self._closing_error())
            return
        try:
            self.engine.submit(request)
        except HeadstartError as error:
            stream.put(error)
            return
        self._streams[request.request_id] = stream
        if request.request_id in self._aborted_early:
            self._abort(request.request_id)

    def _obey(self) -> None:
        """Run the commands that have come in; wait for one if there is nothing else to do."""
        wait = not self.engine.has_work
        while not self._stopped:
            try:
                command = self._commands.get(block=wait)
            except queue.Empty:
                return
            command()
            wait = False

    def _deliver(self, output: RequestOutput) -> None:
        stream = self._streams.get(output.request_id)
        if stream is not None:
            stream.put(output)
            if output.finished:
                del self._streams[output.request_id]

    def _abort(self, request_id: str, stream: _Stream | None = None) -> None:
        """End a request, if it is the given stream's: another caller may have the same id."""
        if self._closed or (stream is not None and self._streams.get(request_id) is not stream):
            return
        output = self.engine.abort(request_id)
        if output is not None:
            self._deliver(output)
        self._streams.pop(request_id, None)
