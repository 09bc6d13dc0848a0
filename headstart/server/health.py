"""Whether a token comes out, for those who decide where requests go."""

import asyncio
from contextlib import aclosing
from typing import Any

from headstart.engine.params import SamplingParams
from headstart.errors import HeadstartError
from headstart.server.service import Service

# Behind a long prompt a token may take a while; longer than this nobody wants to send requests here.
PROBE_SECONDS = 10.0


class Probe:
    """Asks the engine for a token, once for everybody who asks at the same time.

    Args:
        service: whose engine is asked.
        seconds: how long a token may take.
    """

    def __init__(self, service: Service, seconds: float = PROBE_SECONDS) -> None:
        self._service, self._seconds = service, seconds
        self._running: asyncio.Task[bool] | None = None

    async def generates(self) -> bool:
        """Whether the engine writes: its own token, or one for a request that stood before it in line."""
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(self._ask())
        return await asyncio.shield(self._running)

    async def _ask(self) -> bool:
        before = self._service.engine.stats().generation_tokens
        try:
            await asyncio.wait_for(self._one_token(), self._seconds)
        except TimeoutError:
            return self._service.engine.stats().generation_tokens > before
        except HeadstartError:
            return False
        return True

    async def _one_token(self) -> None:
        service = self._service
        token = service.tokenizer.bos_token_id or 0
        params = SamplingParams(max_tokens=1, temperature=0, detokenize=False, output_kind="final")
        source: Any = service.engine.generate({"prompt_token_ids": [token]}, params)
        async with aclosing(source) as outputs:
            async for _ in outputs:
                pass
