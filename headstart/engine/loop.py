"""The engine's own loop: what came in, then a step, then what came out, for as long as it lasts."""

import logging
import queue
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from operator import attrgetter
from typing import Any

from headstart.engine.client import EngineDeadError, Item, RequestFailedError, Submission
from headstart.engine.engine import Engine
from headstart.engine.isolation import StepGuard
from headstart.engine.request import Request
from headstart.engine.resume import resume
from headstart.errors import HeadstartError, InvalidRequestError

log = logging.getLogger(__name__)

# Longer prompts take long enough to read into a request that the running answers would feel it.
_LONG_TEXT, _LONG_IDS = 4096, 32768
_PREPARING_THREADS = 2

Emit = Callable[[list[tuple[int, Item]]], None]


class EngineLoop:
    """Drives one engine in the thread that calls `run`. The other methods may be called from any thread.

    Args:
        engine: belongs to this loop from now on.
        emit: takes outputs and errors by the key of their submission; called after every round, also with nothing.

    Attributes:
        errored: what the loop died of.
        closed: whether `run` has ended, and only errors are emitted any more.
    """

    def __init__(self, engine: Engine, emit: Emit) -> None:
        self.engine = engine
        self.errored: BaseException | None = None
        self.closed = False
        self._emit = emit
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._stopped = False
        self._guard = StepGuard(engine)
        self._pool = ThreadPoolExecutor(_PREPARING_THREADS, "headstart-prepare")
        self._keys: dict[str, int] = {}
        self._ids: dict[int, str] = {}
        # Requests being prepared in the pool, and whether they have been aborted meanwhile.
        self._preparing: dict[int, bool] = {}
        self._outbox: list[tuple[int, Item]] = []

    def submit(self, submission: Submission) -> None:
        """Take a request; what becomes of it is emitted."""
        self._post(lambda: self._begin(submission))

    def abort(self, key: int) -> None:
        """End a request before the next step; its last output is emitted."""
        self._post(lambda: self._end(key))

    def call(self, name: str, arguments: tuple[Any, ...], pending: Future[Any]) -> None:
        """Call a method of the engine between two steps; `pending` gets its result, or what it raised. A method that
        returns a future goes on beside the steps, and `pending` gets the future's."""

        def work() -> None:
            if not pending.set_running_or_notify_cancel():
                return
            try:
                result = attrgetter(name)(self.engine)(*arguments)
            except Exception as error:
                pending.set_exception(error)
                return
            if isinstance(result, Future):
                result.add_done_callback(lambda done: _pass_on(done, pending))
            else:
                pending.set_result(result)

        self._post(work)

    def stop(self) -> None:
        """Let `run` end after the step that is running, aborting what is not finished."""
        self._stopped = True
        self._post(lambda: None)

    def run(self) -> None:
        """Work until stopped, or until the engine breaks: then `errored` says why."""
        try:
            while not self._stopped:
                self._obey()
                if self.engine.has_work:
                    self._step()
                self._flush()
        except BaseException as error:
            log.exception("the engine has stopped because of an error")
            self.errored = error
        finally:
            self._close()

    def _post(self, command: Callable[[], None]) -> None:
        with self._closing:
            if not self.closed:
                self._commands.put(command)
                return
        # Nobody reads commands any more, and nobody else touches the engine.
        command()
        self._flush()

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

    def _step(self) -> None:
        outputs, failures = self._guard.step()
        for output in outputs:
            key = self._keys.get(output.request_id)
            if key is not None:
                self._outbox.append((key, output))
                if output.finished:
                    self._forget(key)
        for request_id, error in failures:
            told = error
            if not isinstance(error, InvalidRequestError):
                where = "".join(traceback.format_tb(error.__traceback__))
                log.error("a request failed in the engine with %s at\n%s", type(error).__name__, where)
                told = RequestFailedError("the engine failed on this request")
            key = self._keys.get(request_id)
            if key is not None:
                self._refuse(key, told)

    def _flush(self) -> None:
        items, self._outbox = self._outbox, []
        self._emit(items)

    def _begin(self, submission: Submission) -> None:
        if self.closed:
            self._refuse(submission.key, self.closing_error())
            return
        prompt, params = submission.prompt, submission.params
        inner = prompt.get("prompt_token_ids", prompt.get("prompt")) if isinstance(prompt, dict) else prompt
        length = len(inner) if isinstance(inner, str | list) else 0
        quick = params.structured_outputs is None and submission.use is None
        if quick and length < (_LONG_TEXT if isinstance(inner, str) else _LONG_IDS):
            try:
                self._ready(submission, self._prepare(submission))
            except Exception as error:
                self._refuse(submission.key, _told(error))
            return
        self._preparing[submission.key] = False
        work = self._pool.submit(self._prepare, submission)
        work.add_done_callback(lambda done: self._post(lambda: self._prepared(submission, done)))

    def _prepare(self, submission: Submission) -> Request:
        return self.engine.prepare(
            submission.request_id,
            submission.prompt,
            submission.params,
            submission.cache_salt,
            submission.arrival_time,
            submission.use,
        )

    def _prepared(self, submission: Submission, done: Future[Request]) -> None:
        """What the pool has made of a request."""
        aborted = self._preparing.pop(submission.key)
        error = done.exception()
        if self.closed:
            error = self.closing_error()
        if error is None:
            try:
                self._ready(submission, done.result())
            except Exception as refusal:
                error = refusal
        if error is not None:
            self._refuse(submission.key, _told(error))
        elif aborted:
            self._end(submission.key)

    def _ready(self, submission: Submission, request: Request) -> None:
        self.engine.submit(request)
        if submission.written:
            resume(self.engine, request, submission.written)
        self._keys[submission.request_id] = submission.key
        self._ids[submission.key] = submission.request_id

    def _end(self, key: int) -> None:
        if key in self._preparing:
            self._preparing[key] = True
        request_id = self._ids.get(key)
        if request_id is None or self.closed:
            return
        output = self.engine.abort(request_id)
        if output is not None:
            self._outbox.append((key, output))
        self._forget(key)

    def _refuse(self, key: int, error: BaseException) -> None:
        self._outbox.append((key, error))
        self._forget(key)

    def _forget(self, key: int) -> None:
        request_id = self._ids.pop(key, None)
        if request_id is not None:
            del self._keys[request_id]

    def closing_error(self) -> HeadstartError:
        """Why no request is taken any more."""
        if self.errored is not None:
            return EngineDeadError(f"the engine has stopped because of an error: {self.errored}")
        return HeadstartError("the engine is shutting down and takes no more requests")

    def _close(self) -> None:
        """Tell everybody who still waits: first those that run, then those whose command was not reached."""
        for key in list(self._ids):
            if self.errored is None:
                self._end(key)
            else:
                self._refuse(key, self.closing_error())
        with self._closing:
            self.closed = True
        while not self._commands.empty():
            self._commands.get()()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for key in list(self._preparing):
            self._refuse(key, self.closing_error())
        self._flush()
        if self.errored is None:
            self.engine.store.flush()
        self.engine.close()


def _pass_on(done: Future[Any], pending: Future[Any]) -> None:
    error = done.exception()
    if error is None:
        pending.set_result(done.result())
    else:
        pending.set_exception(error)


def _told(error: BaseException) -> BaseException:
    """What the caller is told of a request that did not come to run."""
    if isinstance(error, HeadstartError | InvalidRequestError):
        return error
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("a request could not be prepared: %s at\n%s", type(error).__name__, where)
    return RequestFailedError("the engine failed on this request")
