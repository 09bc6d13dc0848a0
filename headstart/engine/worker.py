"""The engine's process: reads requests from its parent's pipe, runs the steps, writes what came out.

Both ends of the pipe belong to this program, and nobody else can reach them, so messages are pickled.
"""

import faulthandler
import logging
import os
import pickle
import signal
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from headstart.checkpoints.generation import GenerationConfig
from headstart.engine.args import EngineArgs
from headstart.engine.client import Item
from headstart.engine.engine import Engine
from headstart.engine.intake import Prompt
from headstart.engine.loop import EngineLoop
from headstart.engine.outputs import RequestOutput
from headstart.engine.ranks import start_engine
from headstart.engine.seams import Tokenization, TokenizerIds
from headstart.errors import HeadstartError

log = logging.getLogger(__name__)

# A parent that has gone leaves this long for the step that is running.
_FAREWELL_SECONDS = 5.0


@dataclass(frozen=True)
class EngineCard:
    """What the parent must know of the engine; fields as in `EngineClient`.

    `plain_tokenization` tells that the tokenizer's own ids are what the engine reads.
    """

    path: Path | None
    model_name: str
    max_model_len: int
    max_num_seqs: int
    exact: bool
    generation_config: GenerationConfig
    plain_tokenization: bool


def strip(item: Item, rewrites: bool) -> Item:
    """An item as it travels: without the prompt, which would be sent with every token.

    The last output brings its token ids if the parent does not have them: `rewrites` tells that they are not those it
    has sent.
    """
    if isinstance(item, RequestOutput):
        if not (item.finished and (rewrites or item.prompt is not None)):
            item.prompt_token_ids = []
        item.prompt = None
        if not item.finished:
            item.prompt_logprobs = None
    return item


def fill(output: RequestOutput, prompt: Prompt) -> None:
    """Give an output back what `strip` has left out."""
    inner = prompt if isinstance(prompt, str | list) else prompt.get("prompt_token_ids", prompt.get("prompt"))
    if isinstance(inner, str):
        output.prompt = inner
    elif inner and not output.prompt_token_ids:
        output.prompt_token_ids = inner


def work(connection: Connection, settings: dict[str, Any], threads: int) -> None:
    """The whole life of the process.

    Args:
        connection: to the parent; when it closes, the process ends.
        settings: of `EngineArgs`.
        threads: PyTorch's.
    """
    # The parent decides when to end, for it lets running requests finish first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # The parent asks for it before it kills a process that hangs; stacks hold no prompts.
    faulthandler.register(signal.SIGUSR1)
    torch.set_num_threads(threads)
    try:
        engine = start_engine(EngineArgs(**settings))
    except HeadstartError as error:
        connection.send_bytes(pickle.dumps(("failed", error)))
        return
    except OSError as error:
        said = f"{error.filename or 'a file'} cannot be used: {error.strerror}"
        connection.send_bytes(pickle.dumps(("failed", HeadstartError(said))))
        return
    _Worker(connection, engine).run()


class _Worker:
    """One engine and its pipe."""

    def __init__(self, connection: Connection, engine: Engine) -> None:
        self._connection, self._engine = connection, engine
        self._sending = threading.Lock()
        self._loop = EngineLoop(engine, self._emit)

    def run(self) -> None:
        """Until told to stop, or until the parent has gone."""
        self._send("ready", self._card(), self._engine.stats())
        threading.Thread(target=self._read, name="headstart-read", daemon=True).start()
        self._loop.run()
        if self._loop.errored is not None:
            self._send("dead", f"{type(self._loop.errored).__name__}: {self._loop.errored}")
        self._connection.close()

    def _card(self) -> EngineCard:
        engine = self._engine
        return EngineCard(
            path=engine.checkpoint.path,
            model_name=engine.checkpoint.name,
            max_model_len=engine.max_model_len,
            max_num_seqs=engine.args.max_num_seqs,
            exact=engine.exact,
            generation_config=engine.checkpoint.generation_config,
            plain_tokenization=type(engine.stack.get("tokenization", Tokenization)) is TokenizerIds,
        )

    def _read(self) -> None:
        """The reading thread: messages become commands of the loop."""
        try:
            while True:
                kind, *rest = pickle.loads(self._connection.recv_bytes())
                if kind == "submit":
                    self._loop.submit(*rest)
                elif kind == "abort":
                    self._loop.abort(*rest)
                elif kind == "call":
                    self._call(*rest)
                elif kind == "peek":
                    self._peek(*rest)
                else:
                    self._loop.stop()
                    return
        except (EOFError, OSError):
            self._loop.stop()
            time.sleep(_FAREWELL_SECONDS)
            os._exit(1)

    def _call(self, number: int, name: str, arguments: tuple[Any, ...]) -> None:
        pending: Future[Any] = Future()

        def answer(done: Future[Any]) -> None:
            error = done.exception()
            self._send("answer", number, None if error else done.result(), error)

        pending.add_done_callback(answer)
        self._loop.call(name, arguments, pending)

    def _peek(self, number: int, name: str, arguments: tuple[Any, ...]) -> None:
        try:
            self._send("answer", number, attrgetter(name)(self._engine)(*arguments), None)
        except Exception as error:
            self._send("answer", number, None, error)

    def _emit(self, items: list[tuple[int, Item]]) -> None:
        # The counters come with every step, so that a client that counts its tokens finds the same in the metrics.
        self._send(
            "outputs", [(key, strip(item, self._engine.stacks.rewrites)) for key, item in items], self._engine.stats()
        )

    def _send(self, *message: Any) -> None:
        try:
            data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
            with self._sending:
                self._connection.send_bytes(data)
        except (BrokenPipeError, OSError):
            self._loop.stop()
