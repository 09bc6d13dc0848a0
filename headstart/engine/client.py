"""What callers see of an engine, wherever it runs: requests in, outputs out, on any asyncio loop."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any
from uuid import uuid4

from headstart.checkpoints.generation import GenerationConfig
from headstart.checkpoints.tokenizer import Tokenizer
from headstart.engine.intake import Prompt
from headstart.engine.outputs import CompletionOutput, Logprob, RequestOutput
from headstart.engine.params import SamplingParams
from headstart.engine.stats import EngineStats
from headstart.errors import HeadstartError, InvalidRequestError

Item = RequestOutput | BaseException


class RequestFailedError(Exception):
    """An error inside the engine that ended one request alone; the log has its reason."""


class EngineDeadError(HeadstartError):
    """The engine has stopped, and with it every request that it ran."""


@dataclass(frozen=True)
class Written:
    """What another engine has written of one output before this one goes on with it.

    Attributes:
        token_ids: of the output so far.
        logprobs: beside each of them; None if the request wants none.
        sent, characters: tokens and characters of them that its reader has been sent.
    """

    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None = None
    sent: int = 0
    characters: int = 0


@dataclass(frozen=True)
class Submission:
    """A request on its way to the engine; `key` is unique among all that this client has sent. `written` holds what
    there is of its outputs already, in their order. `use` are methods of its own; None leaves the engine's."""

    key: int
    request_id: str
    prompt: Prompt
    params: SamplingParams
    cache_salt: str | None
    arrival_time: float
    written: tuple[Written, ...] = ()
    use: tuple[str, ...] | None = None


class OutputStream:
    """Where one request's outputs go, on the loop of whoever asked.

    What a slow reader has not fetched is kept as one output, so that it costs no more than what the request writes.

    Args:
        deltas: whether outputs hold only what is new, and must be put together rather than replaced.
    """

    def __init__(self, deltas: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self._deltas = deltas
        self._items: deque[Item] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def add(self, item: Item) -> None:
        """Take an item, on the stream's own loop."""
        last = self._items[-1] if self._items else None
        if isinstance(last, RequestOutput) and isinstance(item, RequestOutput):
            self._items[-1] = joined(last, item) if self._deltas else item
        else:
            self._items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> Item:
        """The next item; one reader at a time."""
        while not self._items:
            self._waiter = self.loop.create_future()
            await self._waiter
        return self._items.popleft()


def deliver(items: Iterable[tuple[OutputStream, Item]]) -> None:
    """Hand items over from another thread, waking each loop once; a loop that has closed no longer listens."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[OutputStream, Item]]] = {}
    for stream, item in items:
        by_loop.setdefault(stream.loop, []).append((stream, item))
    for loop, mine in by_loop.items():
        try:
            loop.call_soon_threadsafe(_add_all, mine)
        except RuntimeError:
            if not loop.is_closed():
                raise


def _add_all(items: list[tuple[OutputStream, Item]]) -> None:
    for stream, item in items:
        stream.add(item)


def joined(first: RequestOutput, second: RequestOutput) -> RequestOutput:
    """Two deltas that followed each other, as one."""
    outputs = {output.index: output for output in first.outputs}
    for new in second.outputs:
        outputs[new.index] = _joined(outputs[new.index], new) if new.index in outputs else new
    second.outputs = [outputs[index] for index in sorted(outputs)]
    return second


def _joined(first: CompletionOutput, second: CompletionOutput) -> CompletionOutput:
    second.text = first.text + second.text
    second.token_ids = first.token_ids + second.token_ids
    if second.logprobs is not None:
        second.logprobs = (first.logprobs or []) + second.logprobs
    return second


class EngineClient(ABC):
    """An engine for many concurrent callers.

    Attributes:
        errored: what the engine died of; every request fails with it until the engine is back.
        restarting: whether it comes back by itself.
        restarts: how often it has come back.
    """

    def __init__(self) -> None:
        self.errored: BaseException | None = None
        self.restarting = False
        self.restarts = 0
        self._streams: dict[int, OutputStream] = {}
        self._keys: dict[str, int] = {}
        self._numbers = count()
        self._draining = False

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""

    @property
    @abstractmethod
    def generation_config(self) -> GenerationConfig:
        """The checkpoint's recommendations for sampling."""

    @property
    @abstractmethod
    def model_name(self) -> str:
        """What the model is called: the hub id or the directory's name."""

    @property
    @abstractmethod
    def max_model_len(self) -> int:
        """The longest prompt plus output, in tokens."""

    @property
    @abstractmethod
    def max_num_seqs(self) -> int:
        """How many outputs run at once at most."""

    @property
    @abstractmethod
    def exact(self) -> bool:
        """Whether the methods in force leave the model's distribution unchanged."""

    @abstractmethod
    def stats(self) -> EngineStats:
        """The engine's counters now."""

    @abstractmethod
    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """A text's token ids, as the engine reads prompts. Safe to call from any thread."""

    @abstractmethod
    async def call(self, name: str, *arguments: Any) -> Any:
        """Call a method of the `Engine` between two of its steps, such as `"watch.look"`; arguments and result are
        plain data, for they may travel between processes.

        Raises:
            EngineDeadError: the engine is gone.
        """

    @abstractmethod
    async def peek(self, name: str, *arguments: Any) -> Any:
        """Call a method of the `Engine` at once, beside the step that runs; it must be safe from any thread.

        Raises:
            EngineDeadError: the engine is gone.
        """

    @abstractmethod
    async def shutdown(self) -> None:
        """Stop the engine; requests that still run are aborted."""

    @abstractmethod
    def _submit(self, submission: Submission) -> None:
        """Send a request to the engine, whose outputs come by way of `_emit`."""

    @abstractmethod
    def _abort(self, key: int) -> None:
        """End a request before the next step."""

    async def look(self, after: int = 0, tenants: Mapping[str, str] | None = None) -> dict[str, Any]:
        """What the engine is doing, as plain data (`Watch.look`), taken between two steps."""
        return await self.call("watch.look", after, dict(tenants or {}))

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams,
        request_id: str | None = None,
        *,
        cache_salt: str | None = None,
        arrival_time: float | None = None,
        written: Sequence[Written] = (),
        use: Sequence[str] | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Run a request; yields as its `output_kind` says, the last item has `finished`.

        Closing the iterator, or cancelling the task that reads it, aborts the request and frees its pages. Outputs
        that are not fetched in time come together as one.

        Args:
            prompt: text, token ids, or a dict of either.
            sampling_params: how to choose the tokens.
            request_id: a name of your own, for `abort`.
            cache_salt: requests share cached keys only with requests of the same salt.
            arrival_time: when the request came, in seconds of `time.monotonic()` (default: now).
            written: what another engine has written of each output; the answer goes on behind it.
            use: methods of its own, as keys with options (`"KEY:option=value"`), in the place of those of the engine
                that can be a request's own; none at all leaves the plain model.

        Raises:
            InvalidRequestError: the request cannot be served.
            RequestFailedError: the engine failed on this request.
            HeadstartError: the engine is draining, stopped or broken.
        """
        self._refuse_if_closed()
        request_id = request_id or uuid4().hex
        if request_id in self._keys:
            raise InvalidRequestError(f"a request {request_id!r} is already running", "request_id")
        arrival_time = time.monotonic() if arrival_time is None else arrival_time
        stream = OutputStream(sampling_params.output_kind == "delta")
        key = self._keys[request_id] = next(self._numbers)
        self._streams[key] = stream
        finished = False
        try:
            own = None if use is None else tuple(use)
            self._submit(
                Submission(key, request_id, prompt, sampling_params, cache_salt, arrival_time, tuple(written), own)
            )
            while not finished:
                item = await stream.get()
                if isinstance(item, BaseException):
                    finished = True
                    raise item
                finished = item.finished
                yield item
        finally:
            self._streams.pop(key, None)
            del self._keys[request_id]
            if not finished:
                self._abort(key)

    async def abort(self, request_id: str) -> None:
        """End a request before the next step; its reader gets a last item with `finish_reason="abort"`."""
        key = self._keys.get(request_id)
        if key is not None:
            self._abort(key)

    async def drain(self) -> None:
        """Take no more requests, and wait for those that run."""
        self._draining = True
        while self._keys and self.errored is None:
            await asyncio.sleep(0.02)

    def _emit(self, items: list[tuple[int, Item]]) -> None:
        """Hand items to their readers, from whatever thread they come; nobody waits for the others any more."""
        deliver((stream, item) for key, item in items if (stream := self._streams.get(key)) is not None)

    def _refuse_if_closed(self) -> None:
        if self.errored is not None or self._draining:
            raise self._closing_error()

    def _closing_error(self) -> HeadstartError:
        """Why no request is taken any more."""
        if self.errored is None:
            return HeadstartError("the engine is shutting down and takes no more requests")
        if self.restarting:
            return EngineDeadError("the engine has stopped because of an error and is being started again")
        return EngineDeadError(f"the engine has stopped because of an error: {self.errored}")
