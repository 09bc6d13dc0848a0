"""Root-mean-square norm, with the two rounding orders that published models were trained with."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.ops import kernels


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
    if x.dtype == weight.dtype and x.stride(-1) == 1 and kernels.run_on(x, weight):
        from headstart.ops.kernels import norm

        return norm.rms_norm(x, weight, eps, offset=offset, late_rounding=late_rounding)
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


def add_rms_norm(
    x: Tensor,
    branch: Tensor,
    *,
    after: Tensor | None,
    before: Tensor | None,
    eps: float,
    offset: bool = False,
    late_rounding: bool = False,
) -> tuple[Tensor, Tensor]:
    """The residual sum around a block, and what the next block reads of it, in one pass on a GPU.

    Args:
        x: `[T, N]`, the residual stream.
        branch: `[T, N]`, what a block gives.
        after: `[N]`, the scale of a norm of the branch; None adds it as it is.
        before: `[N]`, the scale of a norm of the sum; None has none.
        eps, offset, late_rounding: of both norms, as for `rms_norm`.

    Returns:
        The sum `[T, N]`, and its norm `[T, N]`, or the sum again without `before`.
    """
    if x.dtype == branch.dtype and x.stride(-1) == branch.stride(-1) == 1 and kernels.run_on(x, branch, after, before):
        from headstart.ops.kernels import norm

        return norm.add_rms_norm(x, branch, after, before, eps, offset=offset, late_rounding=late_rounding)
    if after is not None:
        branch = rms_norm(branch, after, eps, offset=offset, late_rounding=late_rounding)
    x = x + branch
    return x, x if before is None else rms_norm(x, before, eps, offset=offset, late_rounding=late_rounding)


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
    square = x.float().square().mean(-1, keepdim=True)
    return scaled_by_square(x, square, weight, eps, offset=offset, late_rounding=late_rounding)


def scaled_by_square(
    x: Tensor, square: Tensor, weight: Tensor, eps: float, *, offset: bool = False, late_rounding: bool = False
) -> Tensor:
    """`rms_norm` of rows whose mean square `[..., 1]` float32 is known, as where a row has parts elsewhere."""
    normalised = x.float() / torch.sqrt(square + eps)
    if offset:
        return (normalised * (1.0 + weight.float())).to(x.dtype)
    if late_rounding:
        return (normalised * weight.float()).to(x.dtype)
    return normalised.to(x.dtype) * weight
