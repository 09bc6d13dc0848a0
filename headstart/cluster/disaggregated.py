"""Prefill in some engines and decode in others: the keys of a prompt are pulled by whoever writes its answer."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace

from headstart.cluster.client import ClusterEngine, Progress
from headstart.cluster.shared_store import MIGRATES, Held
from headstart.engine.client import EngineClient, EngineDeadError, Submission, Written
from headstart.engine.outputs import CompletionOutput, RequestOutput
from headstart.errors import HeadstartError

_HALF = "\ufffd"
# How soon, and then how often, it is asked whether a prompt is being read.
_FIRST_LOOK, _LAST_LOOK = 0.002, 0.05


class DisaggregatedEngine(ClusterEngine):
    """Engines that read and engines that write (DistServe, arXiv 2401.09670).

    A prompt is read by the prefill engine with the least to do, which says the first token and keeps the keys. In order
    of arrival a decode engine with a free place pulls them, layer by layer while the prompt is still being read if it
    has the place by then, and writes the rest. Whoever dies, the request goes on: its
    prompt and what it has written are read again elsewhere.

    Args:
        prefill: engines with `distserve:role=prefill` on a shared store.
        decode: engines with `distserve:role=decode` on a shared store.
        places: requests that one decode engine takes at once (default: what it runs at once).

    Attributes:
        pulled_tokens: of prompts whose keys were pulled.
        pulled_ahead: of those, of prompts whose pull began before they were read.
    """

    def __init__(
        self, prefill: Sequence[EngineClient], decode: Sequence[EngineClient], places: int | None = None
    ) -> None:
        super().__init__([*prefill, *decode])
        self.prefill, self.decode = list(prefill), list(decode)
        self._loads: dict[EngineClient, int] = dict.fromkeys(self.workers, 0)
        count = sum(places or worker.max_num_seqs for worker in self.decode)
        # The bridge: whoever has been read waits here, first come first served, and keeps its keys meanwhile.
        self._bridge = asyncio.Semaphore(count)
        self._farewells: set[asyncio.Task[None]] = set()
        self._names = 0
        self.pulled_tokens = self.pulled_ahead = 0

    async def serve(self, asked: Submission, progress: Progress) -> AsyncGenerator[RequestOutput, None]:
        written = progress.written() or list(asked.written)
        source = await self._freest(self.prefill)
        if not _divisible(asked):
            async with aclosing(self._whole(source, asked, written)) as outputs:
                async for output in outputs:
                    yield output
            return
        held: Held | None = None
        name = f"{MIGRATES}{asked.request_id}:{self._next()}"
        async with AsyncExitStack() as stack:
            stack.callback(self._let_go, source, name)
            ahead = asyncio.ensure_future(self._pull_ahead(stack, source, name))
            self._loads[source] += 1
            try:
                first = await self._read(source, asked, name, written)
                part = first.outputs[0]
                ended = part.finish_reason != "length" or len(part.token_ids) >= (asked.params.max_tokens or 1 << 62)
                full = len(first.prompt_token_ids) + len(part.token_ids) >= self.max_model_len
                if asked.params.generated == 1 and (ended or full):
                    yield _last(first, written, asked)
                    return
                with suppress(EngineDeadError):
                    held = await source.peek("store.take_held", name)
            finally:
                self._loads[source] -= 1
                pull = await _unless_waiting(ahead)
            early = _early(first, written, asked)
            if early is not None:
                yield early
            begun = [_behind(written, part, early), *written[1:]]
            target = pull.target if pull is not None else await stack.enter_async_context(self._seat())
            release = await self._arrive(stack, target, held, pull)
            async with aclosing(self.on(target, asked, asked.request_id, asked.params, begun)) as outputs:
                async for output in outputs:
                    # Its own lease stands now.
                    release.close()
                    output.metrics.first_token_time = first.metrics.first_token_time
                    output.metrics.first_scheduled_time = first.metrics.first_scheduled_time
                    output.num_cached_tokens = first.num_cached_tokens
                    yield output

    @asynccontextmanager
    async def _seat(self) -> AsyncIterator[EngineClient]:
        """A place in the decode engine that has most, once there is one."""
        async with self._bridge:
            target = await self._freest(self.decode)
            self._loads[target] += 1
            try:
                yield target
            finally:
                self._loads[target] -= 1

    async def _pull_ahead(self, stack: AsyncExitStack, source: EngineClient, name: str) -> "_Pull | None":
        """Begin to pull a prompt's keys while they are being computed, if a decode engine has a place by then."""
        reading: Held | None = None
        with suppress(HeadstartError):
            pause = _FIRST_LOOK
            while reading is None:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LAST_LOOK)
                reading = await source.peek("store.take_reading", name)
            if not self._bridge.locked():
                target = await stack.enter_async_context(self._seat())
                return self._begin_pull(stack, target, reading, name)
        return None

    def _begin_pull(self, stack: AsyncExitStack, target: EngineClient, held: Held, name: str) -> "_Pull":
        """Let an engine copy keys; what it has of them is let go when the stack ends."""
        task: asyncio.Task[bool] = asyncio.ensure_future(target.call("store.pull", held, name))  # type: ignore[arg-type]
        pull = _Pull(target, held, name, task, ExitStack())

        def let_go() -> None:
            self._let_go(target, name)
            if not task.done():
                # It has been told to stop, and can be freed once it has.
                task.add_done_callback(lambda _: self._let_go(target, name))

        pull.release.callback(let_go)
        stack.callback(pull.release.close)
        # Whoever has no use for it any more does not ask how it went.
        task.add_done_callback(lambda done: None if done.cancelled() else done.exception())
        return pull

    async def _arrive(
        self, stack: AsyncExitStack, target: EngineClient, held: Held | None, pull: "_Pull | None"
    ) -> ExitStack:
        """Bring the keys to the engine that is to go on with them; what is not there will be computed. Returns what
        lets go of them.

        Raises:
            EngineDeadError: that engine has died.
        """
        if pull is not None:
            if held is not None and held.same(pull.held) and await _arrived(pull.task):
                await target.call("store.confirm", pull.name)
                self.pulled_tokens += len(held.tokens)
                self.pulled_ahead += len(held.tokens)
                return pull.release
            pull.release.close()
        if held is not None:
            pull = self._begin_pull(stack, target, held, f"{MIGRATES}{self._next()}")
            if await _arrived(pull.task):
                self.pulled_tokens += len(held.tokens)
            return pull.release
        return ExitStack()

    async def _whole(
        self, worker: EngineClient, asked: Submission, written: Sequence[Written]
    ) -> AsyncGenerator[RequestOutput, None]:
        """A request that cannot be parted, on the engine that reads."""
        self._loads[worker] += 1
        try:
            async with aclosing(self.on(worker, asked, asked.request_id, asked.params, written)) as outputs:
                async for output in outputs:
                    yield output
        finally:
            self._loads[worker] -= 1

    async def _read(
        self, worker: EngineClient, asked: Submission, name: str, written: Sequence[Written]
    ) -> RequestOutput:
        """Read the prompt and what is written, and draw one token more of the first output."""
        known = written[:1]
        count = len(known[0].token_ids) + 1 if known else 1
        # Among several outputs `best_of` chooses by likelihood, of which this token's is a part.
        chooses = asked.params.generated > asked.params.n and asked.params.logprobs is None
        params = replace(
            asked.params,
            logprobs=0 if chooses else asked.params.logprobs,
            n=1,
            best_of=None,
            max_tokens=min(count, asked.params.max_tokens or count),
            min_tokens=min(asked.params.min_tokens, count),
            output_kind="final",
        )
        output: RequestOutput | None = None
        async with aclosing(self.on(worker, asked, name, params, known)) as outputs:
            async for item in outputs:
                output = item
        assert output is not None and output.finished
        return output

    def _let_go(self, worker: EngineClient, name: str) -> None:
        """Without waiting: the engine does it before its next step."""

        async def tell() -> None:
            with suppress(HeadstartError):
                await worker.call("store.let_go", name)

        task = asyncio.get_running_loop().create_task(tell())
        self._farewells.add(task)
        task.add_done_callback(self._farewells.discard)

    async def _freest(self, workers: Sequence[EngineClient]) -> EngineClient:
        return min(await self.living(workers), key=lambda worker: self._loads[worker])

    def _next(self) -> int:
        self._names += 1
        return self._names


@dataclass(frozen=True)
class _Pull:
    """Keys on their way to an engine, under a name there; `release` lets go of them."""

    target: EngineClient
    held: Held
    name: str
    task: "asyncio.Future[bool]"
    release: ExitStack


async def _arrived(task: "asyncio.Future[bool]") -> bool:
    """Whether keys are there: a source that has died, or no room, is no reason to fail.

    Raises:
        EngineDeadError: the engine that copies them has died.
    """
    try:
        return await asyncio.shield(task)
    except EngineDeadError:
        raise
    except HeadstartError:
        return False


async def _unless_waiting(task: "asyncio.Future[_Pull | None]") -> "_Pull | None":
    """What a task has found by now; one that still waits is ended."""
    task.cancel()
    await asyncio.wait({task})
    return None if task.cancelled() else task.result()


def _divisible(asked: Submission) -> bool:
    """Whether the answer can be written elsewhere: not where there is none, where the prompt's rows are wanted, or
    where methods of its own may keep more than keys."""
    return asked.params.pooling is None and asked.params.prompt_logprobs is None and asked.use is None


def _last(first: RequestOutput, written: Sequence[Written], asked: Submission) -> RequestOutput:
    """The output of a request that ends with its first token, as it was asked for."""
    if asked.params.output_kind == "delta" and written:
        part, known = first.outputs[0], written[0]
        part.token_ids = part.token_ids[known.sent :]
        part.text = part.text[known.characters :]
        if part.logprobs is not None:
            part.logprobs = part.logprobs[known.sent :]
    return first


def _early(first: RequestOutput, written: Sequence[Written], asked: Submission) -> RequestOutput | None:
    """The first token as something to be streamed now; None where it must wait for what follows it."""
    params = asked.params
    if written or params.output_kind == "final" or params.generated != params.n:
        return None
    part = first.outputs[0]
    # Half a character, or what may yet become a stop string, is said when that is known.
    text = "" if params.stop or part.text.endswith(_HALF) else part.text
    said = replace(part, text=text, finish_reason=None, stop_reason=None)
    return replace(first, outputs=[said], finished=False)


def _behind(written: Sequence[Written], part: CompletionOutput, early: RequestOutput | None) -> Written:
    """What the decode engine begins the first output with: all that is known, and what of it was said."""
    sent, characters = (written[0].sent, written[0].characters) if written else (0, 0)
    if early is not None:
        sent, characters = len(part.token_ids), len(early.outputs[0].text)
    return Written(part.token_ids, part.logprobs, sent, characters)
