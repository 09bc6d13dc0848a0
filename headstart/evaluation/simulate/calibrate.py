"""Measured steps of an engine: random mixtures of decodes and chunks at many contexts, to fit a cost model to."""

import gc
import random
from collections import deque
from collections.abc import Callable

import torch

from headstart.engine.args import EngineArgs
from headstart.engine.engine import Engine
from headstart.engine.params import SamplingParams
from headstart.engine.planner import StepPlanner
from headstart.engine.seams import Scheduler
from headstart.evaluation.simulate.cost import Row, StepCost, StepSample
from headstart.methods.registry import MethodCard

STEPS = 240
_WARM_UP = 12


class _Mixtures(Scheduler):
    """Every step is another mixture: some of the decodes, and a chunk of some length."""

    card = MethodCard("mixtures", "schedule", None)

    def __init__(self, seed: int, largest: int) -> None:
        self._random = random.Random(seed)
        self.step_tokens = largest
        # An engine that runs ahead plans a step before the one before it has ended.
        self.planned: deque[tuple[Row, ...]] = deque()

    def schedule(self, step: StepPlanner) -> None:
        decoding = step.decoding
        if decoding and self._random.random() < 0.8:
            count = max(1, round(len(decoding) ** self._random.random()))
            for sequence in self._random.sample(decoding, min(count, len(decoding))):
                step.decode(sequence)
        if not step.allotments() or self._random.random() < 0.6:
            limit = max(1, round(step.budget ** self._random.uniform(0.3, 1.0)))
            reading = step.prefilling
            if reading:
                step.prefill(reading[0], limit)
            else:
                step.admit(limit)
        if not step.allotments():
            for sequence in decoding:
                step.decode(sequence)
        if allotments := step.allotments():
            self.planned.append(tuple((a.num_tokens, a.sequence.num_computed + a.num_tokens) for a in allotments))


def calibrate(
    settings: EngineArgs,
    *,
    context: int,
    sequences: int,
    largest: int,
    steps: int = STEPS,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[StepCost, float]:
    """Run an engine on random mixtures and fit its cost model.

    Args:
        settings: which model, on what; its scheduler is replaced while it is measured.
        context: longest context, in tokens.
        sequences: most sequences at once.
        largest: tokens of the largest step.
        steps: so many are measured.
        seed: of the mixtures.
        say: hears how it goes on.

    Returns:
        The model, and its median relative error on steps that it was not fitted to.
    """
    mixtures = _Mixtures(seed, largest)
    engine = Engine(
        EngineArgs(
            model=settings.model,
            dtype=settings.dtype,
            device=settings.device,
            load_format=settings.load_format,
            page_size=settings.tokens_per_page,
            num_pages=sequences * -(-context // settings.tokens_per_page),
            max_model_len=context,
            max_num_seqs=sequences,
            max_num_batched_tokens=largest,
            enable_prefix_caching=False,
            skip_tokenizer_init=True,
            use=[mixtures],
        )
    )
    rng = random.Random(seed)
    samples: list[StepSample] = []
    say(f"measuring {steps} steps of up to {largest} tokens, {sequences} sequences and {context} tokens of context")
    for number in range(steps + _WARM_UP):
        while len(engine.requests) < sequences:
            _submit(engine, rng, context, f"{number}-{len(engine.requests)}")
        before = engine.watch.step_seconds
        engine.step()
        if mixtures.planned:
            sample = StepSample(mixtures.planned.popleft(), engine.watch.step_seconds - before)
            samples += [sample] if number >= _WARM_UP else []
    engine.close()
    del engine
    if torch.cuda.is_available():
        # A server that is started next needs the memory.
        gc.collect()
        torch.cuda.empty_cache()
    fitted, held_out = [s for i, s in enumerate(samples) if i % 4], samples[::4]
    error = StepCost.fit(fitted).error(held_out)
    return StepCost.fit(samples), error


def _submit(engine: Engine, rng: random.Random, context: int, name: str) -> None:
    length = max(1, round(context ** rng.uniform(0.4, 0.98)))
    output = max(1, min(rng.randrange(4, 200), context - length - 1))
    ids = [rng.randrange(engine.vocab_size) for _ in range(length)]
    params = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True, detokenize=False)
    engine.submit(engine.prepare(name, ids, params))
