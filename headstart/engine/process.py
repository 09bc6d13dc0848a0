"""The engine in a process of its own, which is started again when it dies."""

import asyncio
import atexit
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from itertools import count
from typing import Any

from headstart.checkpoints.generation import GenerationConfig
from headstart.checkpoints.tokenizer import Tokenizer
from headstart.engine.child import Child, LocalChild
from headstart.engine.client import EngineClient, EngineDeadError, Item, Submission, deliver
from headstart.engine.outputs import RequestOutput
from headstart.engine.stats import EngineStats
from headstart.engine.worker import EngineCard, fill
from headstart.errors import HeadstartError

log = logging.getLogger(__name__)

# Waiting times before the engine is started again, in seconds: at once, then ever longer. One that has lived for
# `_SETTLED` seconds begins anew.
BACKOFF = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_SETTLED = 60.0
# What an engine may take to end when asked to: its cache may have to be written to disk.
_END_SECONDS = 30.0
# Generous: the first step on a GPU may compile kernels, and on a CPU a chunk of a large model takes minutes.
STEP_TIMEOUT = 600.0


class ProcessEngine(EngineClient):
    """An engine for many concurrent callers, in a process of its own.

    When that process dies or hangs, its requests fail with `EngineDeadError` at once, and it is started again.

    Args:
        step_timeout: seconds after which a step that has not ended counts as one that hangs; None waits forever.
        start: starts the process, given the settings (default: on this machine).
        settings: the fields of `EngineArgs`.

    Raises:
        HeadstartError: the model cannot be loaded as asked.
    """

    def __init__(
        self,
        *,
        step_timeout: float | None = STEP_TIMEOUT,
        start: Callable[[Mapping[str, Any]], Child] = LocalChild,
        **settings: Any,
    ) -> None:
        super().__init__()
        if step_timeout is not None and not step_timeout > 0:
            raise HeadstartError(f"step_timeout must be a number of seconds above 0, not {step_timeout!r}")
        self._settings, self._start = settings, start
        self._stopping = threading.Event()
        self._calls: dict[int, Future[Any]] = {}
        self._call_numbers = count()
        self._requests: dict[int, Submission] = {}
        self._tokenizer: Tokenizer | None = None
        self._child = start(settings)
        # Before multiprocessing's own handler, which would ask the process to end and wait for it forever.
        atexit.register(self.kill)
        try:
            self._card, self._stats = self._await_ready()
            path = self._card.path
            if path is not None and not settings.get("skip_tokenizer_init", False):
                self._tokenizer = Tokenizer.from_directory(path)
        except BaseException:
            self.kill()
            raise
        self._keeper = threading.Thread(target=self._keep, name="headstart-engine", daemon=True)
        self._keeper.start()
        if step_timeout is not None:
            arguments = (step_timeout,)
            threading.Thread(target=self._watch, args=arguments, name="headstart-watch", daemon=True).start()

    @classmethod
    def from_model(cls, model: str | None = None, **settings: Any) -> "ProcessEngine":
        """Load a model; the settings are the fields of `EngineArgs`."""
        return cls(model=model, **settings)

    @property
    def pid(self) -> int | None:
        """The engine's process; another one after a restart."""
        return self._child.pid

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise HeadstartError("this model runs without a tokenizer")
        return self._tokenizer

    @property
    def generation_config(self) -> GenerationConfig:
        return self._card.generation_config

    @property
    def model_name(self) -> str:
        return self._card.model_name

    @property
    def max_model_len(self) -> int:
        return self._card.max_model_len

    @property
    def max_num_seqs(self) -> int:
        return self._card.max_num_seqs

    @property
    def exact(self) -> bool:
        return self._card.exact

    def stats(self) -> EngineStats:
        return self._stats

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        if self._card.plain_tokenization:
            return self.tokenizer.encode(text, add_special_tokens)
        return self._ask("encode", text, add_special_tokens).result()

    async def call(self, name: str, *arguments: Any) -> Any:
        return await asyncio.wrap_future(self._ask(name, *arguments))

    async def peek(self, name: str, *arguments: Any) -> Any:
        return await asyncio.wrap_future(self._ask(name, *arguments, kind="peek"))

    async def shutdown(self) -> None:
        self._draining = True
        self._stopping.set()
        self._child.send("stop")
        await asyncio.to_thread(self._child.end, _END_SECONDS)
        await asyncio.to_thread(self._keeper.join)
        atexit.unregister(self.kill)

    def _submit(self, submission: Submission) -> None:
        child = self._child
        self._requests[submission.key] = submission
        child.send("submit", submission)
        if self.errored is not None or self._child is not child:
            # It died since the caller looked, and those who waited have been told already.
            self._requests.pop(submission.key, None)
            raise self._closing_error()

    def _abort(self, key: int) -> None:
        self._child.send("abort", key)

    def _ask(self, name: str, *arguments: Any, kind: str = "call") -> Future[Any]:
        pending: Future[Any] = Future()
        if self.errored is not None or self._stopping.is_set():
            pending.set_exception(self._closing_error())
            return pending
        child, number = self._child, next(self._call_numbers)
        self._calls[number] = pending
        child.send(kind, number, name, arguments)
        if (self.errored is not None or self._child is not child) and self._calls.pop(number, None) is not None:
            pending.set_exception(self._closing_error())
        return pending

    def _await_ready(self) -> tuple[EngineCard, EngineStats]:
        try:
            kind, *content = self._child.receive()
        except EOFError:
            raise HeadstartError(f"the engine's process ended {self._child.ending} before it was ready") from None
        if kind == "failed":
            raise content[0]
        return content[0], content[1]

    def _keep(self) -> None:
        """The keeper's thread: reads what comes from the process, and starts it again when it dies."""
        failures = 0
        while True:
            began = time.monotonic()
            reason = self._listen()
            if self._stopping.is_set():
                self._fail_all(HeadstartError("the engine is shutting down and takes no more requests"))
                return
            failures = 0 if time.monotonic() - began > _SETTLED else failures
            self._lost(reason)
            while not self._stopping.is_set():
                self._stopping.wait(BACKOFF[min(failures, len(BACKOFF) - 1)])
                failures += 1
                if self._stopping.is_set() or self._start_again():
                    break

    def _watch(self, seconds: float) -> None:
        """The watcher's thread: asks again and again for something that the engine answers between two steps."""
        while not self._stopping.wait(seconds / 4):
            child = self._child
            pending = self._ask("stats")
            try:
                pending.result(seconds)
            except TimeoutError:
                if not self._stopping.is_set():
                    child.give_up(f"a step did not end within {seconds:g} seconds")
            except HeadstartError:
                continue  # it has died, or is being started

    def _listen(self) -> str:
        """Read until the process ends; returns why it did, as far as it could tell."""
        reason = ""
        while True:
            try:
                kind, *rest = self._child.receive()
            except EOFError:
                if self._stopping.is_set():
                    return ""
                self._child.end(1.0)
                return self._child.fault or reason or f"its process ended {self._child.ending}"
            if kind == "outputs":
                items, self._stats = rest
                self._emit([self._completed(*item) for item in items])
            elif kind == "answer":
                self._settle(*rest)
            elif kind == "dead":
                reason = rest[0]

    def _completed(self, key: int, item: Item) -> tuple[int, Item]:
        """An item with what did not travel with it."""
        request = self._requests.get(key)
        if request is not None and isinstance(item, RequestOutput):
            fill(item, request.prompt)
        if not isinstance(item, RequestOutput) or item.finished:
            self._requests.pop(key, None)
        return key, item

    def _settle(self, number: int, result: Any, error: BaseException | None) -> None:
        pending = self._calls.pop(number, None)
        if pending is not None and pending.set_running_or_notify_cancel():
            pending.set_result(result) if error is None else pending.set_exception(error)

    def _lost(self, reason: str) -> None:
        """Tell everybody that the process is gone."""
        log.error("the engine has died (%s) and is being started again", reason)
        self.restarting = True
        self.errored = EngineDeadError(f"the engine has died: {reason}")
        self._fail_all(EngineDeadError("the engine has stopped because of an error and is being started again"))

    def _fail_all(self, error: HeadstartError) -> None:
        self._requests.clear()
        deliver([(stream, error) for stream in list(self._streams.values())])
        calls, self._calls = self._calls, {}
        for pending in calls.values():
            if pending.set_running_or_notify_cancel():
                pending.set_exception(error)

    def _start_again(self) -> bool:
        """One attempt; whether it succeeded."""
        try:
            self._child = self._start(self._settings)
            self._card, self._stats = self._await_ready()
        except (HeadstartError, OSError) as error:
            log.error("the engine could not be started again: %s", error)
            self._child.end(1.0)
            return False
        self.restarts += 1
        self.errored, self.restarting = None, False
        log.warning("the engine runs again")
        return True

    def kill(self) -> None:
        """End the process now, whatever it does."""
        self._stopping.set()
        self._child.kill()
