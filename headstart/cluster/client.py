"""What all clusters share: several engines that callers see as one, and requests that outlive their engine."""

import asyncio
import time
from abc import abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, fields, replace
from secrets import randbits
from typing import Any
from uuid import uuid4

from headstart.checkpoints.generation import GenerationConfig
from headstart.checkpoints.tokenizer import Tokenizer
from headstart.engine.client import EngineClient, EngineDeadError, Submission, Written
from headstart.engine.engine import EngineStats
from headstart.engine.intake import Prompt
from headstart.engine.outputs import Logprob, RequestOutput
from headstart.engine.params import SamplingParams
from headstart.errors import HeadstartError, InvalidRequestError

# A request is begun again so often when the engine under it dies, and waits so long for one to come back.
_LIVES = 4
_PATIENCE = 120.0
_POLL = 0.05


@dataclass
class Progress:
    """What a request has been told so far, per output: what another engine needs to go on with it."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    logprobs: dict[int, list[dict[int, Logprob]]] = field(default_factory=dict)
    characters: dict[int, int] = field(default_factory=dict)
    closed: set[int] = field(default_factory=set)

    def note(self, output: RequestOutput, delta: bool) -> None:
        """Take what an output says."""
        for part in output.outputs:
            index = part.index
            before = self.tokens.get(index, []) if delta else []
            self.tokens[index] = [*before, *part.token_ids]
            if part.logprobs is not None:
                self.logprobs[index] = [*(self.logprobs.get(index, []) if delta else []), *part.logprobs]
            self.characters[index] = (self.characters.get(index, 0) if delta else 0) + len(part.text)
            if part.finish_reason is not None:
                self.closed.add(index)

    def written(self) -> list[Written]:
        """As an engine takes it, in order of the outputs, as far as there is no gap."""
        found = []
        for index in range(len(self.tokens)):
            if index not in self.tokens:
                break
            tokens = self.tokens[index]
            found.append(Written(tokens, self.logprobs.get(index), len(tokens), self.characters.get(index, 0)))
        return found


class ClusterEngine(EngineClient):
    """Several engines as one. A request whose engine dies goes on in another, or in the same when it is back: what it
    has written already is kept, and not said again.

    Args:
        workers: engines with the same model, methods and sizes.
    """

    def __init__(self, workers: Sequence[EngineClient]) -> None:
        super().__init__()
        self.workers = list(workers)
        self._running: dict[str, asyncio.Task[None] | None] = {}
        self._inner: dict[str, tuple[EngineClient, str]] = {}
        self._aborted: set[str] = set()
        self.resumed = 0

    @property
    def tokenizer(self) -> Tokenizer:
        return self.workers[0].tokenizer

    @property
    def generation_config(self) -> GenerationConfig:
        return self.workers[0].generation_config

    @property
    def model_name(self) -> str:
        return self.workers[0].model_name

    @property
    def max_model_len(self) -> int:
        return min(worker.max_model_len for worker in self.workers)

    @property
    def max_num_seqs(self) -> int:
        return sum(worker.max_num_seqs for worker in self.workers)

    @property
    def exact(self) -> bool:
        return all(worker.exact for worker in self.workers)

    def stats(self) -> EngineStats:
        self.restarts = sum(worker.restarts for worker in self.workers)
        return _sum([worker.stats() for worker in self.workers])

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self.workers[0].encode(text, add_special_tokens)

    async def call(self, name: str, *arguments: Any) -> Any:
        """Of the first engine that lives: what it is doing stands for the others."""
        return await (await self.living(self.workers))[0].call(name, *arguments)

    async def peek(self, name: str, *arguments: Any) -> Any:
        """As `call`."""
        return await (await self.living(self.workers))[0].peek(name, *arguments)

    async def shutdown(self) -> None:
        self._draining = True
        await asyncio.gather(*(worker.shutdown() for worker in self.workers))

    async def drain(self) -> None:
        self._draining = True
        while self._running:
            await asyncio.sleep(_POLL)

    async def abort(self, request_id: str) -> None:
        if request_id in self._running:
            self._aborted.add(request_id)
            inner = self._inner.get(request_id)
            if inner is not None:
                await inner[0].abort(inner[1])

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
        self._refuse_if_closed()
        request_id = request_id or uuid4().hex
        if request_id in self._running:
            raise InvalidRequestError(f"a request {request_id!r} is already running", "request_id")
        if sampling_params.seed is None:
            # An engine that goes on with the request must draw what the first would have drawn.
            sampling_params = replace(sampling_params, seed=randbits(62))
        arrival_time = time.monotonic() if arrival_time is None else arrival_time
        own = None if use is None else tuple(use)
        asked = Submission(0, request_id, prompt, sampling_params, cache_salt, arrival_time, tuple(written), own)
        self._running[request_id] = None
        try:
            async with aclosing(self._outlive(asked)) as outputs:
                async for output in outputs:
                    output.request_id = request_id
                    yield output
        finally:
            self._running.pop(request_id, None)
            self._inner.pop(request_id, None)
            self._aborted.discard(request_id)

    async def _outlive(self, asked: Submission) -> AsyncGenerator[RequestOutput, None]:
        """Serve a request on one engine after another until it has ended."""
        progress = Progress()
        delta = asked.params.output_kind == "delta"
        for life in range(_LIVES):
            try:
                async with aclosing(self.serve(asked, progress)) as outputs:
                    async for output in outputs:
                        progress.note(output, delta)
                        yield output
                return
            except EngineDeadError:
                if life == _LIVES - 1 or self._draining:
                    raise
                self.resumed += 1

    @abstractmethod
    def serve(self, asked: Submission, progress: Progress) -> AsyncGenerator[RequestOutput, None]:
        """Serve a request as far as the engines live, going on behind its progress.

        Raises:
            EngineDeadError: an engine has died meanwhile.
        """

    async def on(
        self, worker: EngineClient, asked: Submission, name: str, params: SamplingParams, written: Sequence[Written]
    ) -> AsyncGenerator[RequestOutput, None]:
        """A request on one engine, under a name of its own there."""
        self._inner[asked.request_id] = (worker, name)
        outputs = worker.generate(
            asked.prompt,
            params,
            name,
            cache_salt=asked.cache_salt,
            arrival_time=asked.arrival_time,
            written=written,
            use=asked.use,
        )
        async with aclosing(outputs):
            async for output in outputs:
                yield output

    async def living(self, workers: Sequence[EngineClient]) -> list[EngineClient]:
        """Those of the engines that run, waiting for one to come back if none does.

        Raises:
            HeadstartError: none has come back in time.
        """
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            found = [worker for worker in workers if worker.errored is None]
            if found:
                return found
            await asyncio.sleep(_POLL)
        raise HeadstartError(f"none of {len(workers)} engines has come back within {_PATIENCE:.0f} s; see their log")

    def _submit(self, submission: Submission) -> None:
        raise NotImplementedError("requests go to the engines behind this one")

    def _abort(self, key: int) -> None:
        raise NotImplementedError("requests go to the engines behind this one")


def _sum(stats: Sequence[EngineStats]) -> EngineStats:
    """Counters of several engines as one's."""
    total: dict[str, Any] = {}
    for item in fields(EngineStats):
        values = [getattr(each, item.name) for each in stats]
        if isinstance(values[0], dict):
            total[item.name] = _merged(values)
        elif isinstance(values[0], list):
            total[item.name] = [sum(column) for column in zip(*values, strict=True)]
        else:
            total[item.name] = sum(values)
    return EngineStats(**total)


def _merged(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for value in values:
        for name, count in value.items():
            if isinstance(count, Mapping):
                found[name] = _merged([found.get(name, {}), count])
            else:
                found[name] = found.get(name, 0) + count
    return found
