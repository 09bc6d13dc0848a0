"""What a step takes beside weights and cache, found by running one of the largest size before the cache is made."""

import torch
from torch import Tensor

from headstart.models.decoder import AttentionSpec, Decoder

# Kernels of attention and of the draws have scratch memory of their own, that a step without them does not show.
_SLACK = 1.25


@torch.inference_mode()
def step_bytes(decoder: Decoder, step_tokens: int, max_num_seqs: int, max_model_len: int) -> int:
    """Bytes of a GPU that the largest step needs at its peak; 0 on a CPU, whose memory is not reserved.

    Args:
        decoder: with its weights on the device.
        step_tokens: the token budget T of a step.
        max_num_seqs: rows whose logits are made at once.
        max_model_len: tokens of the longest sequence, whose keys of one layer may be gathered.
    """
    device = decoder.embedding.weight.device
    if device.type != "cuda":
        return 0
    tokens = torch.zeros(step_tokens, dtype=torch.int64, device=device)
    positions = torch.arange(step_tokens, device=device) % max_model_len
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    hidden = decoder(tokens, positions, _attend_to_nothing, positions + 1)
    decoder.logits(hidden[:max_num_seqs])
    peak = torch.cuda.max_memory_allocated(device) - before
    del hidden
    torch.cuda.empty_cache()
    gathered = max(2 * spec.num_kv_heads * spec.head_dim for spec in decoder.attention_specs) * max_model_len
    return int(peak * _SLACK) + gathered * decoder.dtype.itemsize


def _attend_to_nothing(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """An `Attend` that costs the memory of its result."""
    return torch.zeros_like(q, memory_format=torch.contiguous_format)
