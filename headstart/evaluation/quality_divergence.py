"""How far a stack of methods moves the next-token distribution: KL divergence and top-1 agreement.

Both engines read the same prompts and are then given the same continuation, token by token, so that every row compares
like with like: the first row is what the prompt's reading left, the others what decoding over those keys gives. No
task is needed, and random weights will do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor

from headstart.engine.engine import Engine
from headstart.engine.params import SamplingParams
from headstart.engine.request import Sequence as EngineSequence
from headstart.engine.sampler import Guess, Sampled, Sampler
from headstart.errors import HeadstartError

_ids = count()


@dataclass(frozen=True)
class Divergence:
    """Row i compares the distributions of the token after the prompt and i tokens of its continuation.

    Attributes:
        kl: KL(reference || other) in nats, per row.
        agree: whether both find the same token likeliest, per row.
    """

    kl: list[float]
    agree: list[bool]

    @property
    def mean_kl(self) -> float:
        """In nats per token."""
        return sum(self.kl) / len(self.kl)

    @property
    def top1(self) -> float:
        """In percent of the rows."""
        return 100.0 * sum(self.agree) / len(self.agree)


class _Forced(Sampler):
    """Hands out given tokens instead of drawing, and shows each row of logits to `see`."""

    def __init__(self, inner: Sampler, tokens: Sequence[int], see: Callable[[Tensor], None]) -> None:
        super().__init__(inner.eos_ids, inner.decode)
        self._tokens = tokens
        self._see = see

    def sample(
        self, logits: Tensor, sequences: list[EngineSequence], guesses: list[Guess | None] | None = None
    ) -> list[Sampled]:
        (sequence,) = sequences
        self._see(logits[0])
        return [Sampled(self._tokens[sequence.num_output], None)]


def forced_logits(engine: Engine, prompt: Sequence[int], continuation: Sequence[int]) -> Tensor:
    """Next-token logits after a prompt, and after each token of a continuation but the last: float32 `[N, V]`.

    The prompt goes through whatever reads prompts in this engine, the continuation through whatever decodes.

    Args:
        engine: an engine without work.
        prompt: token ids.
        continuation: N token ids.

    Raises:
        HeadstartError: the engine is busy, or the prompt does not fit.
    """
    if engine.has_work:
        raise HeadstartError("logits are taken from an engine that has nothing else to do; this one has requests")
    rows: list[Tensor] = []
    drawing = engine.draws.sampler
    # With a least length the engine looks on at each draw, and so asks this sampler.
    params = SamplingParams(
        max_tokens=len(continuation),
        min_tokens=len(continuation),
        temperature=0.0,
        ignore_eos=True,
        detokenize=False,
    )
    engine.draws.sampler = _Forced(
        drawing, continuation, lambda row: rows.append(row.to("cpu", torch.float32, copy=True))
    )
    try:
        name = f"forced-{next(_ids)}"
        # Salted with its own name: keys from an earlier request would change how the prompt is cut into chunks.
        engine.submit(engine.prepare(name, list(prompt), params, cache_salt=name))
        while engine.has_work:
            engine.step()
    finally:
        engine.draws.sampler = drawing
    return torch.stack(rows)


def exact_twin(engine: Engine, length: int | None = None) -> Engine:
    """An engine with the same weights as they were loaded, and no methods.

    Weights are shared, unless a method has taken hold of them or they were quantised.

    Args:
        engine: the engine to compare with.
        length: prompt and continuation of the longest comparison, in tokens, for which the cache is made (default:
            the engine's own longest).

    Raises:
        HeadstartError: weights were changed that were made rather than read.
    """
    length = min(length or engine.max_model_len, engine.max_model_len)
    args = replace(
        engine.args,
        use=(),
        quantization=None,
        enable_prefix_caching=False,
        max_num_seqs=1,
        max_model_len=length,
        # The other engine's cache may have taken most of the memory.
        num_pages=-(-length // engine.args.tokens_per_page) + 1,
    )
    if engine.args.quantization is None and not engine.stack.filled("linear"):
        return Engine(args, engine.checkpoint)
    path = engine.checkpoint.path
    if path is None:
        raise HeadstartError("these weights were changed, and there are no files to read the exact ones from")
    return Engine(replace(args, model=str(path)))


def divergence(reference: Tensor, other: Tensor) -> Divergence:
    """Compare logits `[N, V]` of two engines, row by row."""
    p, q = reference.double().log_softmax(-1), other.double().log_softmax(-1)
    kl = (p.exp() * (p - q)).nan_to_num(nan=0.0).sum(-1).clamp_min(0.0)
    return Divergence(kl.tolist(), (p.argmax(-1) == q.argmax(-1)).tolist())
