"""Root-mean-square norm, with the two rounding orders that published models were trained with."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, offset: bool = False, late_rounding: bool = False) -> Tensor:
    """`x / rms(x) * weight` over the last dimension, computed in float32, in x's dtype.

    Args:
        x: `[..., N]`.
        weight: `[N]`.
        eps: added to the mean square.
        offset: the scale is `1 + weight` (Gemma), which implies late rounding.
        late_rounding: round after the weight is applied (OLMo 2, Gemma) rather than before it (Llama).

    Returns:
        `[..., N]`.
    """
    if x.device.type != "cpu":
        return _fused(x, weight, eps, offset, late_rounding)
    # PyTorch has no single kernel for this on a CPU; here it is four operations rather than its ten.
    wide = x.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    normalised = wide * torch.addcmul(_scalar(eps), length, length, value=1.0 / x.shape[-1]).rsqrt()
    if offset:
        return (normalised * (1.0 + weight.float())).to(x.dtype)
    if late_rounding:
        return (normalised * weight).to(x.dtype)
    return normalised.to(x.dtype) * weight


def _fused(x: Tensor, weight: Tensor, eps: float, offset: bool, late_rounding: bool) -> Tensor:
    size = (x.shape[-1],)
    if offset:
        return F.rms_norm(x.float(), size, 1.0 + weight.float(), eps).to(x.dtype)
    if late_rounding or x.dtype == torch.float32:
        return F.rms_norm(x, size, weight, eps)
    return F.rms_norm(x, size, None, eps) * weight


@cache
def _scalar(value: float) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(value)


def rms_norm_reference(
    x: Tensor, weight: Tensor, eps: float, *, offset: bool = False, late_rounding: bool = False
) -> Tensor:
    """The same by its definition, one rounding at a time."""
    wide = x.float()
    normalised = wide / torch.sqrt(wide.square().mean(-1, keepdim=True) + eps)
    if offset:
        return (normalised * (1.0 + weight.float())).to(x.dtype)
    if late_rounding:
        return (normalised * weight.float()).to(x.dtype)
    return normalised.to(x.dtype) * weight
