"""The probe: one long decode from before a load to its end, whose gaps show whether strangers stall it."""

import asyncio
import time
from collections.abc import Callable

from headstart.evaluation.load.plan import Ask
from headstart.evaluation.load.prompts import PROBE, Prompts
from headstart.evaluation.load.records import RequestRecord
from headstart.evaluation.load.sender import Sender
from headstart.evaluation.load.settings import LoadError
from headstart.evaluation.load.target import Target

PROBE_INPUT = 16
_LONGEST_OUTPUT, _USUAL_OUTPUT = 4096, 1024
# How long it runs alone: at least so many seconds and tokens, at most so many seconds.
_ALONE_SECONDS, _ALONE_TOKENS, _ALONE_MOST_SECONDS = 1.0, 20, 10.0


class Probe:
    """One decode after another, each as long as the model allows; the time between two of them is no gap. It begins
    at once.

    Args:
        sender: sends the requests.
        target: writes them.
        prompts: what they ask.
        note: takes their records.

    Attributes:
        task: to be cancelled at the end.
    """

    def __init__(self, sender: Sender, target: Target, prompts: Prompts, note: Callable[[RequestRecord], None]) -> None:
        self._sender, self._target, self._prompts, self._note = sender, target, prompts, note
        self._alone = 0.0
        self._heard = asyncio.Event()
        self._failure: str | None = None
        self.task = asyncio.create_task(self._hold())

    async def start(self, token_seconds: float) -> None:
        """Wait for its first token, and set the sender's origin to when the others may come.

        Args:
            token_seconds: what a token takes alone.

        Raises:
            LoadError: the server does not answer.
        """
        self._alone = min(max(_ALONE_SECONDS, _ALONE_TOKENS * token_seconds), _ALONE_MOST_SECONDS)
        heard = asyncio.create_task(self._heard.wait())
        await asyncio.wait({self.task, heard}, return_when=asyncio.FIRST_COMPLETED)
        if not heard.done():
            heard.cancel()
            raise LoadError(f"the server does not answer the probe: {self._failure}")

    def _first_piece(self) -> None:
        """The first answer has begun: the load's clock starts when the probe has run alone for a while."""
        if not self._heard.is_set():
            self._sender.origin = time.perf_counter() + self._alone
            self._heard.set()

    async def _hold(self) -> None:
        longest = self._target.max_model_len
        output = _USUAL_OUTPUT if longest is None else max(1, min(longest - PROBE_INPUT, _LONGEST_OUTPUT))
        index = 0
        while True:
            ask = Ask(index, None, PROBE_INPUT, output)
            body = self._target.body(await self._prompts.prompt(ask, PROBE), output)
            record = await self._sender.send("probe", ask, body, self._first_piece)
            self._note(record)
            if record.status != "ok":
                self._failure = record.error
                return
            index += 1
