"""Times of an engine in this process, taken by what it answers: reading a prompt, and steps of a batch that writes."""

import random
import time

from headstart.engine.engine import Engine
from headstart.engine.params import SamplingParams


class EngineTimes:
    """Asks an idle engine without a prefix cache for random prompts.

    Args:
        engine: belongs to this object as long as it measures.
        seed: of the prompts.
    """

    def __init__(self, engine: Engine, seed: int = 0) -> None:
        self.engine = engine
        self._rng = random.Random(seed)

    def prefill(self, length: int) -> float:
        """Seconds from a prompt to its first token."""
        self._submit(length, 1)
        begun = time.perf_counter()
        self._drain()
        return time.perf_counter() - begun

    def decode(self, length: int, batch: int = 1, tokens: int = 16) -> float:
        """Seconds per step of so many sequences whose contexts are `length` tokens at half of the measurement.

        Args:
            length: tokens of context.
            batch: sequences.
            tokens: steps that count.
        """
        prompt = max(1, length - tokens // 2)
        names = [self._submit(prompt, tokens + 2) for _ in range(batch)]
        waiting = set(names)
        while waiting:
            for output in self.engine.step():
                waiting.discard(output.request_id)
        # All have their first token; the next step belongs to nobody's prompt.
        self.engine.step()
        begun, steps = time.perf_counter(), 0
        while len(self.engine.requests) == batch and steps < tokens:
            self.engine.step()
            steps += 1
        seconds = (time.perf_counter() - begun) / steps
        for name in names:
            self.engine.abort(name)
        self._drain()
        return seconds

    def _submit(self, length: int, tokens: int) -> str:
        ids = [self._rng.randrange(self.engine.vocab_size) for _ in range(length)]
        name = f"timed-{self._rng.random()}"
        params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True, detokenize=False)
        self.engine.submit(self.engine.prepare(name, ids, params))
        return name

    def _drain(self) -> None:
        while self.engine.has_work:
            self.engine.step()
