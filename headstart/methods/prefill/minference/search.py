"""The offline search: which of several patterns of about equal cost changes a head's output least."""

import torch
from torch import Tensor

from headstart.checkpoints.reader import Checkpoint
from headstart.errors import MethodError
from headstart.methods.prefill.minference.index import Estimate
from headstart.methods.prefill.minference.patterns import LayerPatterns, Pattern, as_json
from headstart.models.decoder import AttentionSpec
from headstart.ops.attention import RaggedLayout, paged_attention

# Official code, for a text of 30,000 tokens; the blocks cost about as much as the lines.
_TEXT = 30_000
_CANDIDATES = (
    Pattern("a-shape", 100, 800),
    Pattern("vertical-slash", 30, 800),
    Pattern("vertical-slash", 100, 750),
    Pattern("vertical-slash", 500, 700),
    Pattern("vertical-slash", 3500, 100),
    Pattern("block-sparse", 0, 30),
)
# Short texts do not make budgets smaller than this share of them.
_SMALLEST = 0.5
# Of patterns whose errors differ by less, the cheapest is taken.
_TIE = 1.05
_LEAST = 256
_PAGE = 64


def search(checkpoint: Checkpoint, tokens: Tensor, estimate: Estimate) -> dict[str, object]:
    """Read a text once, and find for each head of each layer the pattern of the smallest error of its output.

    Args:
        checkpoint: the model, in one piece.
        tokens: int64 `[N]`. Budgets are as the official code has them for 30,000 tokens, scaled to so many,
            but by no less than a half.
        estimate: how the patterns will find their places.

    Returns:
        The content of a pattern file.

    Raises:
        MethodError: the text is too short to tell patterns apart, or too long for the model.
    """
    length, most = len(tokens), checkpoint.config.max_extended_position
    if length < max(_LEAST, 4 * estimate.block):
        least = max(_LEAST, 4 * estimate.block)
        raise MethodError(
            f"minference: a calibration text of {length} tokens is too short to tell patterns apart; give one of at "
            f"least {least} tokens, better as long as the prompts to come"
        )
    if length > most:
        raise MethodError(
            f"minference: a calibration text of {length} tokens is longer than the model's {most} positions"
        )
    watcher = _Watcher(length, estimate, checkpoint.decoder.embedding.weight.device)
    with torch.inference_mode():
        device = watcher.layout.device
        places = torch.arange(length, device=device)
        checkpoint.decoder(tokens.to(device), places, watcher, torch.full_like(places, length))
    layers = [[pattern for pattern, _ in heads] for heads in watcher.found]
    errors = [[round(error, 4) for _, error in heads] for heads in watcher.found]
    return as_json(checkpoint.config, layers, text_tokens=length, output_errors=errors)


def scaled(length: int) -> list[Pattern]:
    """The candidates for a text of so many tokens."""
    share = min(max(length / _TEXT, _SMALLEST), 1.0)
    return [
        Pattern(pattern.kind, round(pattern.columns * share), round(pattern.distances * share))
        for pattern in _CANDIDATES
    ]


class _Watcher:
    """Exact attention that tries every candidate on the way: an `Attend`.

    Attributes:
        layout: of the one text.
        found: layer by layer the best pattern of each head, with its error.
    """

    def __init__(self, length: int, estimate: Estimate, device: torch.device) -> None:
        pages = -(-length // _PAGE)
        self.layout = RaggedLayout([length], [length], [range(pages)], _PAGE, device)
        self.estimate = estimate
        self.found: list[list[tuple[Pattern, float]]] = []
        self._candidates = scaled(length)

    def __call__(self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pad = (0, 0, 0, 0, 0, -k.shape[0] % _PAGE)
        keys, values = (torch.nn.functional.pad(x, pad).unflatten(0, (-1, _PAGE)) for x in (k, v))
        rule = {"scale": spec.scale, "window": spec.window, "softcap": spec.softcap}
        exact, _ = paged_attention(q, keys, values, self.layout, **rule)
        size = exact.float().square().sum((0, 2)).sqrt()
        errors, costs = [], []
        for candidate in self._candidates:
            patterns = LayerPatterns([candidate] * spec.num_heads, q.device)
            blocks = self.estimate.key_blocks(patterns, q, keys, self.layout, spec.scale)
            out, _ = paged_attention(q, keys, values, self.layout, **rule, selection=blocks)
            errors.append((out.float() - exact.float()).square().sum((0, 2)).sqrt() / size)
            costs.append(blocks.head_pairs(self.layout))
        self.found.append(self._best(torch.stack(errors).cpu(), torch.stack(costs).cpu()))
        return exact

    def _best(self, errors: Tensor, costs: Tensor) -> list[tuple[Pattern, float]]:
        """`[candidates, H]` each → per head the cheapest of the best, with its error."""
        good = errors <= errors.min(0).values * _TIE
        picks = costs.double().masked_fill(~good, torch.inf).argmin(0).tolist()
        return [(self._candidates[pick], errors[pick, head].item()) for head, pick in enumerate(picks)]
