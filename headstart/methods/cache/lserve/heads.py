"""Which KV heads stream and which retrieve, and the calibration that tells them apart."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headstart.checkpoints.reader import Checkpoint
from headstart.errors import MethodError
from headstart.methods.model_file import ModelFile
from headstart.models.config import ModelConfig
from headstart.models.decoder import AttentionSpec
from headstart.ops.attention.reach import Reach
from headstart.ops.packed_attention import PackedMask, Segments, packed_attention

FILE = ModelFile("lserve", "heads")
# The share of the text that is said again at its end.
_REPEATED = 4


def streaming_heads(scores: list[list[float]], share: float) -> list[tuple[int, ...]]:
    """Per layer the KV heads, ascending, that lose least: exactly the rounded share of all heads of the model."""
    ranked = sorted((score, layer, head) for layer, heads in enumerate(scores) for head, score in enumerate(heads))
    chosen = {(layer, head) for _, layer, head in ranked[: round(share * len(ranked))]}
    return [tuple(head for head in range(len(heads)) if (layer, head) in chosen) for layer, heads in enumerate(scores)]


def read_scores(path: Path, config: ModelConfig) -> list[list[float]]:
    """What each KV head of each layer loses, from a file.

    Raises:
        MethodError: the file cannot be read, or is of another model.
    """
    scores: Any = FILE.read(path, config).get("losses")
    shape = [len(heads) if isinstance(heads, list) else 0 for heads in scores] if isinstance(scores, list) else []
    whole = shape == [config.num_kv_heads] * config.num_layers
    if not whole or not all(isinstance(score, int | float) for heads in scores for score in heads):
        raise FILE.damaged(path)
    return scores


@torch.inference_mode()
def calibrate(checkpoint: Checkpoint, tokens: list[int], reach: Reach) -> dict[str, object]:
    """Read a text whose beginning is repeated at its end, and find for each KV head how much of its output is lost
    there if it sees only what `reach` lets it: the norm of the difference over the norm, of the query heads that share
    it. A head that carries something over from where it was first said loses most.

    Args:
        checkpoint: the model, in one piece.
        tokens: the text; the longer, the farther away is what is repeated.
        reach: of a streaming head.

    Returns:
        The content of a file of heads.

    Raises:
        MethodError: the text is too short for the beginning to be out of reach, or too long for the model.
    """
    repeated, most = len(tokens) // _REPEATED, checkpoint.config.max_position
    length = len(tokens) + repeated
    least = 2 * (reach.sink + reach.local) * reach.block
    if len(tokens) < least:
        raise MethodError(
            f"lserve: a calibration text of {len(tokens)} tokens is too short, since heads that stream see most of it; "
            f"give one of at least {least} tokens"
        )
    if length > most:
        raise MethodError(
            f"lserve: a calibration text of {len(tokens)} tokens, the first {repeated} of which are repeated, is "
            f"longer than the model's {most} positions"
        )
    decoder = checkpoint.decoder
    device = decoder.embedding.weight.device
    watcher = _Watcher(length, repeated, reach, device)
    ids = torch.tensor([*tokens, *tokens[:repeated]], device=device)
    places = torch.arange(length, device=device)
    decoder(ids, places, watcher, torch.full_like(places, length))
    about = {"text_tokens": len(tokens), "reach": vars(reach)}
    return FILE.content(checkpoint.config, **about, losses=watcher.losses)


class _Watcher:
    """Exact attention that compares itself with that of streaming heads: an `Attend`.

    Attributes:
        losses: layer by layer, of each KV head.
    """

    def __init__(self, length: int, repeated: int, reach: Reach, device: torch.device) -> None:
        self.losses: list[list[float]] = []
        self._repeated, self._reach, self._device = repeated, reach, device
        self._segments = Segments.of((length,), torch.arange(length, device=device))

    def __call__(self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = PackedMask(self._segments)
        mask.prepare({spec.window})
        exact = packed_attention(q, k, v, mask, scale=spec.scale, window=spec.window, softcap=spec.softcap)
        rows = slice(len(q) - self._repeated, len(q))
        streamed = self._streamed(spec, q[rows], k, v, rows.start)
        wanted = exact[rows].float()
        lost = (streamed - wanted).square().sum((0, 2)).view(spec.num_kv_heads, -1).sum(1)
        size = wanted.square().sum((0, 2)).view(spec.num_kv_heads, -1).sum(1)
        self.losses.append([round(value, 5) for value in (lost / size).sqrt().tolist()])
        return exact

    def _streamed(self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, start: int) -> Tensor:
        """`[R, H, D]` float32: what the rows from `start` on give if they see what is in reach."""
        out = torch.empty(q.shape, dtype=torch.float32, device=self._device)
        block = self._reach.block
        for first in range(start, start + len(q), block):
            rows = torch.arange(first, min(first + block, start + len(q)), device=self._device)
            # Rows need not begin with a block: the rule is asked for each.
            seen = self._reach.sees(rows[:, None], torch.arange(int(rows[-1]) + 1, device=self._device))
            keys = seen.any(0).nonzero()[:, 0]
            heads = q[rows - start].float().unflatten(1, (spec.num_kv_heads, -1))
            scores = torch.einsum("rhgd,nhd->hgrn", heads, k[keys].float()) * spec.scale
            if spec.softcap is not None:
                scores = spec.softcap * torch.tanh(scores / spec.softcap)
            weights = scores.masked_fill(~seen[:, keys], -torch.inf).softmax(-1)
            out[rows - start] = torch.einsum("hgrn,nhd->rhgd", weights, v[keys].float()).flatten(1, 2)
        return out
