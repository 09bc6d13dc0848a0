"""Plain replicas behind a router that knows which engine has read what."""

from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from hashlib import blake2b

import numpy as np

from headstart.cluster.client import ClusterEngine, Progress
from headstart.engine.client import EngineClient, Submission
from headstart.engine.outputs import RequestOutput

# Prompts are compared in blocks of so many tokens (of text: characters), and so many blocks are remembered.
_BLOCK = 64
_REMEMBERED = 1 << 16
# A cached prefix is not worth more than so many requests of waiting behind others.
_IMBALANCE = 4


class PrefixRouter:
    """Sends a prompt to the engine that has read the longest beginning of it, unless that one has much more to do.

    Args:
        count: of engines.
    """

    def __init__(self, count: int) -> None:
        self.loads = [0] * count
        self._seen: OrderedDict[bytes, set[int]] = OrderedDict()

    def choose(self, prompt: str | Sequence[int], salt: str | None, among: Sequence[int]) -> int:
        """One of these engines; notes that it will have read the prompt.

        Args:
            prompt: text or token ids.
            salt: requests of different salts share no keys.
            among: engines that live.
        """
        names = _names(prompt, salt)
        least = min(self.loads[place] for place in among)
        depth = dict.fromkeys(among, 0)
        for number, name in enumerate(names, start=1):
            holders = self._seen.get(name)
            if holders is None:
                break
            for place in holders:
                if depth.get(place) == number - 1:
                    depth[place] = number
        near = [place for place in among if self.loads[place] - least < _IMBALANCE]
        chosen = min(near, key=lambda place: (-depth[place], self.loads[place]))
        for name in names:
            self._seen.setdefault(name, set()).add(chosen)
            self._seen.move_to_end(name)
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return chosen

    def forget(self, place: int) -> None:
        """An engine has lost what it had read."""
        for holders in self._seen.values():
            holders.discard(place)


def _names(prompt: str | Sequence[int], salt: str | None) -> list[bytes]:
    """Names of the prompt's whole blocks, each depending on all before it."""
    if isinstance(prompt, str):
        parts = [prompt[at : at + _BLOCK].encode() for at in range(0, len(prompt) - _BLOCK + 1, _BLOCK)]
    else:
        ids = np.asarray(prompt, dtype=np.int64)
        parts = [ids[at : at + _BLOCK].tobytes() for at in range(0, len(ids) - _BLOCK + 1, _BLOCK)]
    names, above = [], (salt or "").encode()
    for part in parts:
        above = blake2b(above + part, digest_size=16).digest()
        names.append(above)
    return names


class ReplicatedEngine(ClusterEngine):
    """Engines that all do the same, behind a cache-aware router: the baseline of everything that parts them."""

    def __init__(self, workers: Sequence[EngineClient]) -> None:
        super().__init__(workers)
        self.router = PrefixRouter(len(self.workers))
        self._restarts = [0] * len(self.workers)

    async def serve(self, asked: Submission, progress: Progress) -> AsyncGenerator[RequestOutput, None]:
        alive = await self.living(self.workers)
        places = [self.workers.index(worker) for worker in alive]
        for place in places:
            if self.workers[place].restarts != self._restarts[place]:
                self._restarts[place] = self.workers[place].restarts
                self.router.forget(place)
        inner = asked.prompt
        if not isinstance(inner, str | list):
            inner = inner.get("prompt_token_ids", inner.get("prompt", ""))
        chosen = self.router.choose(inner if isinstance(inner, str | list) else "", asked.cache_salt, places)
        written = progress.written() or asked.written
        self.router.loads[chosen] += 1
        try:
            outputs = self.on(self.workers[chosen], asked, asked.request_id, asked.params, written)
            async with aclosing(outputs):
                async for output in outputs:
                    yield output
        finally:
            self.router.loads[chosen] -= 1
