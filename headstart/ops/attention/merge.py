"""Attention over the union of disjoint key sets, by log-sum-exp."""

import torch
from torch import Tensor


def merge_attention(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint key sets.

    `out_a, out_b [..., D]` with `lse_a, lse_b [...]` float32 → `(out [..., D] float32, lse [...])`. A side that saw
    no key (lse of -inf) leaves the other unchanged.
    """
    lse = torch.logaddexp(lse_a, lse_b)
    safe = torch.where(lse == -torch.inf, torch.zeros_like(lse), lse)
    weight_a = torch.exp(lse_a - safe).unsqueeze(-1)
    weight_b = torch.exp(lse_b - safe).unsqueeze(-1)
    return out_a.float() * weight_a + out_b.float() * weight_b, lse
