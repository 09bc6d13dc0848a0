"""The loss of next-token prediction, fused with the output layer: logits exist for some rows at a time only."""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""The target of a row that is not predicted."""

_MOST_ROWS = 1 << 15
_CHUNK_ELEMENTS = 1 << 29


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None) -> Tensor:
    """The summed cross entropy of `hidden @ weight.T`, in nats.

    Gradients are made in the forward pass, chunk by chunk, so that neither pass holds all logits.

    Args:
        hidden: `[N, H]`; under autocast the products run in its dtype.
        weight: `[V, H]`.
        targets: `[N]` int64, `IGNORED` where a row does not count.
        softcap: logits become `softcap * tanh(logits / softcap)`.

    Returns:
        A float32 scalar.
    """
    kind = hidden.device.type
    compute = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    # Inside of an autograd function it cannot be seen whether gradients are kept outside of it.
    wanted = (torch.is_grad_enabled() and hidden.requires_grad, torch.is_grad_enabled() and weight.requires_grad)
    return _LinearCrossEntropy.apply(hidden, weight, targets, softcap, compute, wanted)  # type: ignore[no-any-return]


def linear_cross_entropy_reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None
) -> Tensor:
    """The same by its definition, in float64."""
    logits = hidden.double() @ weight.double().t()
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        softcap: float | None,
        compute: torch.dtype,
        wanted: tuple[bool, bool],
    ) -> Tensor:
        """`wanted` says of `hidden` and of `weight` whether its gradient is asked for."""
        head, rows_in = weight.to(compute), hidden.to(compute)
        chunk = chunk_rows(weight.shape[0])
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(rows_in) if wanted[0] else None
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if wanted[1] else None
        loss_of = _compiled_rows() if hidden.is_cuda else _rows
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], chunk):
                part = slice(start, start + chunk)
                loss, gradient = loss_of(rows_in[part] @ head.t(), targets[part], softcap)
                total += loss
                if grad_hidden is not None:
                    torch.mm(gradient, head, out=grad_hidden[part])
                if grad_weight is not None:
                    grad_weight += gradient.t() @ rows_in[part]
        kept = (
            None if grad_hidden is None else grad_hidden.to(hidden.dtype),
            None if grad_weight is None else grad_weight.to(weight.dtype),
        )
        ctx.save_for_backward(*kept)  # type: ignore[arg-type]
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (outer,) = grads
        saved = ctx.saved_tensors  # type: ignore[attr-defined]
        return *(None if grad is None else grad * outer.to(grad.dtype) for grad in saved), None, None, None, None


def chunk_rows(vocab_size: int) -> int:
    """Rows whose logits exist at once: at most 2 GiB of them in float32."""
    return max(1, min(_MOST_ROWS, _CHUNK_ELEMENTS // vocab_size))


def _rows(logits: Tensor, targets: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """`logits [N, V]`, `targets [N]` → summed loss and its gradient `[N, V]` by the logits, in their dtype."""
    scores = logits.float()
    if softcap is not None:
        bent = torch.tanh(scores / softcap)
        scores = bent * softcap
    counts = targets != IGNORED
    chosen = targets.clamp(min=0)
    lse = torch.logsumexp(scores, -1)
    loss = torch.where(counts, lse - scores.gather(-1, chosen[:, None])[:, 0], 0.0).sum()
    gradient = torch.exp(scores - lse[:, None])
    columns = torch.arange(scores.shape[-1], device=scores.device)
    gradient = torch.where(columns == chosen[:, None], gradient - 1.0, gradient)
    if softcap is not None:
        gradient = gradient * (1.0 - bent.square())  # pyright: ignore[reportPossiblyUnboundVariable]
    return loss, torch.where(counts[:, None], gradient, 0.0).to(logits.dtype)


@cache
def _compiled_rows() -> Any:
    return torch.compile(_rows, dynamic=False)
