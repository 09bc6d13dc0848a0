"""One profile run: how long a step of so many tokens takes on this model and device, with a long context behind it."""

import random
import time

from headstart.checkpoints.reader import Checkpoint
from headstart.engine.args import EngineArgs
from headstart.engine.engine import Engine
from headstart.engine.params import SamplingParams

# Steps of a multiple of the matrix tile waste nothing of the last tile (sarathi, section 4: 257 rows may cost a third
# more than 256); processors have no such tile, but small models need fine steps.
TILES = {"cuda": 128, "cpu": 16}
_ROUNDS = 3


class StepProfile:
    """Times steps of a model in an engine of its own, without other methods.

    Where several ranks hold the model, all of them time the same steps, and the slowest counts on each.

    Args:
        checkpoint: the model, as it is loaded.
        context: tokens of context at the end of each timed step, and the most that one may have.

    Attributes:
        tile: steps should be multiples of so many tokens.
        context: as asked for, as far as the model can tell positions apart.
    """

    def __init__(self, checkpoint: Checkpoint, context: int) -> None:
        device = str(checkpoint.decoder.embedding.weight.device)
        self._ranks = checkpoint.decoder.ranks
        self.tile = TILES.get(device.partition(":")[0], 128)
        longest = checkpoint.config.max_extended_position
        self.context = min(context, longest - 1)
        args = EngineArgs(
            device=device,
            max_num_seqs=1,
            max_num_batched_tokens=self.context,
            async_scheduling=False,
            enforce_eager=True,
            skip_tokenizer_init=True,
        )
        self._page = args.tokens_per_page
        args.num_pages = 2 * -(-(self.context + 1) // self._page) + 2
        # What is before a step is read once, and found in the cache by all others.
        self._engine = Engine(args, checkpoint)
        self._random = random.Random(0)
        self._past = self._tokens(self.context)
        self.seconds(min(self.tile, self.context))

    def seconds(self, tokens: int) -> float:
        """The best of a few steps of so many tokens, at most the context."""
        best = 2**62
        for _ in range(_ROUNDS):
            prompt = [*self._past[: self.context - tokens], *self._tokens(tokens)]
            self._run(prompt[: (self.context - tokens) // self._page * self._page])
            begun = time.perf_counter_ns()
            self._run(prompt)
            best = min(best, time.perf_counter_ns() - begun)
        (least,) = self._ranks.least(-best, device=self._engine.runner.device)
        return -least / 1e9

    def _run(self, prompt: list[int]) -> None:
        if not prompt:
            return
        params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, detokenize=False)
        self._engine.submit(self._engine.prepare(f"{self._random.random()}", prompt, params))
        while self._engine.has_work:
            self._engine.step()

    def _tokens(self, count: int) -> list[int]:
        return [self._random.randrange(self._engine.vocab_size) for _ in range(count)]


def largest_step(profile: StepProfile, seconds: float, most: int) -> int | None:
    """The largest step, in whole tiles, that takes at most so long; None if not even one tile does.

    Args:
        profile: times steps.
        seconds: that a step may take.
        most: tokens that are tried.
    """
    low, high = 0, max(1, min(most, profile.context) // profile.tile)
    while low < high:
        middle = (low + high + 1) // 2
        if profile.seconds(middle * profile.tile) <= seconds:
            low = middle
        else:
            high = middle - 1
    return low * profile.tile or None


def knee(profile: StepProfile, most: int, share: float = 0.95) -> int:
    """The smallest power of two of tokens that reaches so much of the best throughput.

    Args:
        profile: times steps.
        most: tokens that are tried.
        share: of the plateau.
    """
    sizes = [profile.tile]
    while sizes[-1] * 2 <= min(most, profile.context):
        sizes.append(sizes[-1] * 2)
    rates = [size / profile.seconds(size) for size in sizes]
    return next(size for size, rate in zip(sizes, rates, strict=True) if rate >= share * max(rates))
