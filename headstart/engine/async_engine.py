"""The engine behind asyncio in this process: a thread runs the steps, coroutines submit requests and get outputs."""

import asyncio
import threading
from concurrent.futures import Future
from operator import attrgetter
from typing import Any

from headstart.checkpoints.generation import GenerationConfig
from headstart.checkpoints.tokenizer import Tokenizer
from headstart.engine.args import EngineArgs
from headstart.engine.client import EngineClient, Item, Submission
from headstart.engine.engine import Engine
from headstart.engine.loop import EngineLoop
from headstart.engine.ranks import start_engine
from headstart.engine.stats import EngineStats
from headstart.errors import HeadstartError


class AsyncEngine(EngineClient):
    """An engine for many concurrent callers, in a thread of this process.

    Args:
        engine: the engine; it belongs to this object from now on.

    Attributes:
        errored: what the engine's thread died of; every further request fails with it.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self._loop = EngineLoop(engine, self._take)
        self._thread = threading.Thread(target=self._loop.run, name="headstart-engine", daemon=True)
        self._thread.start()

    @classmethod
    def from_model(cls, model: str | None = None, **settings: Any) -> "AsyncEngine":
        """Load a model; the settings are the fields of `EngineArgs`."""
        return cls(start_engine(EngineArgs(model=model, **settings)))

    @property
    def tokenizer(self) -> Tokenizer:
        if self.engine.tokenizer is None:
            raise HeadstartError("this model runs without a tokenizer")
        return self.engine.tokenizer

    @property
    def generation_config(self) -> GenerationConfig:
        return self.engine.checkpoint.generation_config

    @property
    def model_name(self) -> str:
        return self.engine.checkpoint.name

    @property
    def max_model_len(self) -> int:
        return self.engine.max_model_len

    @property
    def max_num_seqs(self) -> int:
        return self.engine.args.max_num_seqs

    @property
    def exact(self) -> bool:
        return self.engine.exact

    def stats(self) -> EngineStats:
        return self.engine.stats()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self.engine.encode(text, add_special_tokens)

    async def call(self, name: str, *arguments: Any) -> Any:
        pending: Future[Any] = Future()
        self._loop.call(name, arguments, pending)
        return await asyncio.wrap_future(pending)

    async def peek(self, name: str, *arguments: Any) -> Any:
        return attrgetter(name)(self.engine)(*arguments)

    async def drain(self) -> None:
        await super().drain()
        while self.engine.has_work and self._thread.is_alive():
            await asyncio.sleep(0.02)

    async def shutdown(self) -> None:
        self._draining = True
        self._loop.stop()
        await asyncio.to_thread(self._thread.join)

    def _submit(self, submission: Submission) -> None:
        self._loop.submit(submission)

    def _abort(self, key: int) -> None:
        self._loop.abort(key)

    def _take(self, items: list[tuple[int, Item]]) -> None:
        if self._loop.errored is not None:
            self.errored = self._loop.errored
        self._emit(items)
