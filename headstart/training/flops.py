"""What training a network costs in FLOPs, and what the device could do at best."""

import time
from collections.abc import Sequence

import torch
from torch import nn

from headstart.models.decoder import Decoder
from headstart.ops.attention.reach import Reach


def training_flops(network: nn.Module, lengths: Sequence[int]) -> float:
    """FLOPs of one forward and backward pass over documents of these lengths: three times the forward pass.

    A multiply-add is two; norms, RoPE and activations, under one per cent, are left out. Recomputation does not count.
    Of a network that is no `Decoder`, attention is left out too.
    """
    tokens = sum(lengths)
    matrices = sum(p.numel() for p in network.parameters() if p.ndim == 2)
    if not isinstance(network, Decoder):
        return 6.0 * (matrices - _looked_up(network)) * tokens
    config = network.config
    if not config.tie_embeddings:
        matrices -= network.embedding.weight.numel()
    if config.moe is not None:
        stacked = sum(p.numel() for p in network.parameters() if p.ndim == 3)
        matrices += stacked * config.moe.top_k // config.moe.num_experts
    rules = {(spec.window, spec.reach) for spec in network.attention_specs}
    pairs = {rule: sum(_pairs(length, *rule) for length in lengths) for rule in rules}
    attention = sum(
        4.0 * spec.num_heads * spec.head_dim * pairs[spec.window, spec.reach] for spec in network.attention_specs
    )
    return 3.0 * (2.0 * matrices * tokens + attention)


def _looked_up(network: nn.Module) -> int:
    """Weights of tables that no product uses."""
    tables = {module.weight for module in network.modules() if isinstance(module, nn.Embedding)}
    used = {module.weight for module in network.modules() if isinstance(module, nn.Linear)}
    return sum(table.numel() for table in tables - used)


def _pairs(length: int, window: int | None, reach: Reach | None = None) -> int:
    """Query-key pairs of causal attention."""
    if reach is not None:
        return reach.pairs(length)
    if window is None or window >= length:
        return length * (length + 1) // 2
    return window * (window + 1) // 2 + (length - window) * window


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product here and now: the most of a few tries."""
    size = 8192 if device.type == "cuda" else 512
    # A generator of its own: the run's random streams go on untouched.
    a = torch.randn(size, size, device=device, generator=torch.Generator(device).manual_seed(0)).to(dtype)
    best = 0.0
    for _ in range(4):
        _wait(device)
        start = time.perf_counter()
        torch.mm(a, a)
        _wait(device)
        best = max(best, 2.0 * size**3 / (time.perf_counter() - start))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
