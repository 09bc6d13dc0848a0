"""The three kinds of weights, dense, embedding and norm: where the numbers live and what applies them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.models.parallel import ALONE, Ranks
from headstart.ops import kernels
from headstart.ops.activation import gated
from headstart.ops.linear import empty_weight, gated_linear, linear
from headstart.ops.norm import add_rms_norm, rms_norm, scaled_by_square
from headstart.ops.quantized import QuantizedWeight, quantize, quantized_gated_linear, quantized_linear

# A product of fewer rows takes no less time than this many, so that smaller chunks only add to it.
_CHUNK_ROWS = 256


class Linear(nn.Module):
    """A dense weight `[out, in]`, uninitialised, in the memory order that is fastest on its device.

    Attributes:
        op: `[T, in]` → `[T, out]`, what applies the weight instead of the plain product; None is the plain product.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.weight = parameter(empty_weight(out_features, in_features, dtype, device))
        self.bias = parameter(torch.empty(out_features, dtype=dtype, device=device)) if bias else None
        self.op: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """`[T, in]` → `[T, out]`, added to `onto [T, out]` if given, whose place it may take."""
        if self.op is None:
            return linear(x, self.weight, self.bias, onto)
        if isinstance(self.op, Quantized):
            return self.op(x, onto)
        return self.op(x) if onto is None else onto + self.op(x)

    def gated(self, x: Tensor, activation: str) -> Tensor:
        """`[T, in]` → `[T, out / 2]`: the first half of the outputs gates the other."""
        if self.op is None and kernels.run_on(x):
            return gated_linear(x, self.weight, self.bias, activation)
        if isinstance(self.op, Quantized):
            return quantized_gated_linear(x, self.op.weight, self.bias, activation)
        return gated(self(x), activation)

    def quantize(self, kind: str) -> None:
        """Keep the weight in eight bits only (a name in `headstart.ops.quantized.QUANTIZATIONS`)."""
        self.op = Quantized(self.weight, kind, self.bias)
        del self.weight


class Quantized(nn.Module):
    """A weight `[..., out, in]` in eight bits, made from one in more.

    Args:
        weight: rounded here, and not kept.
        kind: a name in `headstart.ops.quantized.QUANTIZATIONS`.
        bias: `[out]`.
    """

    values: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, kind: str, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        values, scale = quantize(weight.detach(), kind)
        self.register_buffer("values", values)
        self.register_buffer("scale", scale)
        self.bias = bias

    @property
    def weight(self) -> QuantizedWeight:
        """What the ops take."""
        return QuantizedWeight(self.values, self.scale)

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """`[T, in]` → `[T, out]`, for a weight `[out, in]`."""
        return quantized_linear(x, self.weight, self.bias, onto)


class SummedLinear(Linear):
    """A dense weight of whose inputs every rank holds some: the products are summed over the ranks.

    Args:
        in_features: this rank's inputs.
        bias: rank 0 adds it, once for all.
        ranks: alone, this is a `Linear`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(in_features, out_features, bias and ranks.rank == 0, dtype, device)
        self.out_features = out_features
        self.ranks = ranks

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """`[T, in]` → `[T, out]`, added to `onto [T, out]` if given, whose place it may take."""
        if self.ranks.size == 1:
            return super().forward(x, onto)
        chunks = min(self.ranks.chunks, x.shape[0] // _CHUNK_ROWS)
        total = self._sum_in_chunks(x, chunks) if chunks > 1 else self.ranks.sum_(super().forward(x))
        # The residual stream joins after the sum: each rank has all of it, and it is rounded once.
        return total if onto is None else total.add_(onto)

    def _sum_in_chunks(self, x: Tensor, chunks: int) -> Tensor:
        """The tiled all-reduce of FastAttention (arXiv 2410.16663): what one part of the tokens gives travels between
        the ranks while the next part is computed."""
        total = x.new_empty(x.shape[0], self.out_features)
        pairs = zip(x.tensor_split(chunks), total.tensor_split(chunks), strict=True)
        self.ranks.sum_parts_(place.copy_(super(SummedLinear, self).forward(part)) for part, place in pairs)
        return total


class Embedding(nn.Module):
    """A table `[vocab, hidden]`, uninitialised.

    Args:
        scale: what looked-up rows are multiplied with.
        tied: the table is the output layer too, which decides in which order it lies in memory.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        *,
        scale: float | None,
        tied: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        if tied:
            self.weight = parameter(empty_weight(vocab_size, hidden_size, dtype, device))
        else:
            self.weight = parameter(torch.empty(vocab_size, hidden_size, dtype=dtype, device=device))
        # Checkpoints were trained with the scale rounded to their dtype.
        self.scale = None if scale is None else torch.tensor(scale, dtype=dtype).item()

    def forward(self, token_ids: Tensor) -> Tensor:
        """`[T]` → `[T, hidden]`, under autocast in its dtype, which then is the residual stream's."""
        rows = F.embedding(token_ids, self.weight)
        kind = rows.device.type
        if torch.is_autocast_enabled(kind):
            rows = rows.to(torch.get_autocast_dtype(kind))
        return rows if self.scale is None else rows * self.scale


class RMSNorm(nn.Module):
    """The scale `[N]` of a root-mean-square norm; see `headstart.ops.norm.rms_norm` for the two flags."""

    def __init__(
        self,
        size: int,
        eps: float,
        *,
        offset: bool,
        late_rounding: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.weight = parameter(torch.empty(size, dtype=dtype, device=device))
        self.eps = eps
        self.offset = offset
        self.late_rounding = late_rounding

    def forward(self, x: Tensor, ranks: Ranks = ALONE) -> Tensor:
        """`[..., N]` → `[..., N]`; of rows that lie on several ranks, equal parts on each, this rank's part."""
        if ranks.size > 1:
            square = ranks.sum_(x.float().square().mean(-1, keepdim=True)) / ranks.size
            return scaled_by_square(
                x, square, self.weight, self.eps, offset=self.offset, late_rounding=self.late_rounding
            )
        return rms_norm(x, self.weight, self.eps, offset=self.offset, late_rounding=self.late_rounding)


def add_and_norm(x: Tensor, branch: Tensor, after: nn.Module, before: nn.Module) -> tuple[Tensor, Tensor]:
    """The residual sum around a block and what the next one reads: `x + after(branch)`, and `before` of that.

    Args:
        x, branch: `[T, hidden]`.
        after, before: norms, or `nn.Identity`; of one style, where both are norms.

    Returns:
        Two of `[T, hidden]`.
    """
    norms = [norm for norm in (after, before) if isinstance(norm, RMSNorm)]
    known = all(isinstance(norm, RMSNorm | nn.Identity) for norm in (after, before))
    if not norms or not known or not kernels.run_on(x, branch):
        x = x + after(branch)
        return x, before(x)
    return add_rms_norm(
        x,
        branch,
        after=after.weight if isinstance(after, RMSNorm) else None,
        before=before.weight if isinstance(before, RMSNorm) else None,
        eps=norms[0].eps,
        offset=norms[0].offset,
        late_rounding=norms[0].late_rounding,
    )


def parameter(values: Tensor) -> nn.Parameter:
    """A parameter that is not trained until `requires_grad_()` says so: plain inference keeps no graph."""
    return nn.Parameter(values, requires_grad=False)
