"""Where the last rows of a prompt look: their attention summed by key and by distance, and blocks by their means."""

import torch
from torch import Tensor

# Scores that are held at a time where no kernel of ours runs.
_SCORES = 1 << 24


def line_scores(q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """How much of some rows' attention falls on each key, and on each distance (MInference, arXiv 2407.02490).

    Args:
        q: `[R, H, D]`, the last rows of a sequence, few of them.
        k: `[N, Hkv, D]`, all its keys.
        scale: factor on the scores.

    Returns:
        Two float32 `[H, N]`, sums over the rows of their causal attention: by key, and by the distance to the key.
    """
    if q.is_cuda:
        from headstart.ops.kernels.line_scores import line_scores_on_gpu

        return line_scores_on_gpu(q, k, scale)
    return line_scores_reference(q, k, scale)


def line_scores_reference(q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """`line_scores` in plain PyTorch, a part of the keys at a time."""
    (rows, heads), length = q.shape[:2], k.shape[0]
    asked = q.float().transpose(0, 1).reshape(k.shape[1], -1, q.shape[2])  # [Hkv, G x R, D]
    place = torch.arange(length - rows, length, device=q.device)
    parts = range(0, length, max(1, _SCORES // (rows * heads)))

    def scores(first: int) -> Tensor:
        part = k[first : first + parts.step].float().permute(1, 2, 0)
        found = (asked @ part * scale).view(heads, rows, -1)
        key = torch.arange(first, first + found.shape[2], device=q.device)
        return found.masked_fill_(key > place[:, None], -torch.inf)

    lse = torch.full((heads, rows), -torch.inf, device=q.device)
    for first in parts:
        lse = torch.logaddexp(lse, torch.logsumexp(scores(first), -1))
    columns = torch.empty(heads, length, device=q.device)
    # Distances below 0 hold nothing.
    distances = torch.zeros(heads, length + rows, device=q.device)
    for first in parts:
        weights = torch.exp(scores(first) - lse[..., None])
        size = weights.shape[2]
        columns[:, first : first + size] = weights.sum(1)
        # Row r of the flipped weights is moved r places to the right: diagonals become columns.
        padded = torch.nn.functional.pad(weights.flip(2), (0, rows)).flatten(1)
        skewed = padded[:, : rows * (size + rows - 1)].view(heads, rows, -1).sum(1)
        least = length - first - size + 1  # where the diagonal of the first row and the last key lies
        distances[:, least : least + size + rows - 1] += skewed
    return columns, distances[:, rows:]


def block_means(x: Tensor, block: int) -> Tensor:
    """`[N, H, D]` → float32 `[B, H, D]`: the mean of each block of rows, the last of which may be shorter."""
    rows = x.shape[0]
    padded = torch.nn.functional.pad(x.float(), (0, 0, 0, 0, 0, -rows % block))
    sums = padded.unflatten(0, (-1, block)).sum(1)
    counts = torch.full((len(sums), 1, 1), float(block), device=x.device)
    counts[-1] = block - -rows % block
    return sums / counts
