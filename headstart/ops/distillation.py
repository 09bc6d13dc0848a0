"""The distance of one network's next-token distribution from another's, fused with both output layers: logits exist
for some rows at a time only.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.ops.cross_entropy import chunk_rows


def linear_kl_divergence(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    counts: Tensor,
    *,
    temperature: float = 1.0,
    softcaps: tuple[float | None, float | None] = (None, None),
) -> Tensor:
    """The summed KL(teacher || student) of the softmax of logits over `temperature`, in nats.

    The student's gradients are made in the forward pass, chunk by chunk, so that neither pass holds all logits. The
    teacher gets none.

    Args:
        hidden, weight: `[N, H]` and `[V, H]`, whose product is the student's logits.
        teacher_hidden, teacher_weight: `[N, H']` and `[V, H']`, the teacher's; the products run in the dtype of
            autocast, else in that of `hidden`.
        counts: bool `[N]`, which rows count.
        temperature: what logits are divided by.
        softcaps: of the student's and the teacher's logits: `softcap * tanh(logits / softcap)`.

    Returns:
        A float32 scalar.
    """
    kind = hidden.device.type
    compute = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    # Inside of an autograd function it cannot be seen whether gradients are kept outside of it.
    wanted = (torch.is_grad_enabled() and hidden.requires_grad, torch.is_grad_enabled() and weight.requires_grad)
    return _LinearKL.apply(  # type: ignore[no-any-return]
        hidden, weight, teacher_hidden.detach(), teacher_weight.detach(), counts, temperature, softcaps, compute, wanted
    )


def linear_kl_divergence_reference(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    counts: Tensor,
    *,
    temperature: float = 1.0,
    softcaps: tuple[float | None, float | None] = (None, None),
) -> Tensor:
    """The same by its definition, in float64."""

    def log_probabilities(rows: Tensor, table: Tensor, softcap: float | None) -> Tensor:
        logits = rows.double() @ table.double().t()
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        return torch.log_softmax(logits / temperature, -1)

    student = log_probabilities(hidden, weight, softcaps[0])
    teacher = log_probabilities(teacher_hidden, teacher_weight, softcaps[1])
    return F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1)[counts].sum()


class _LinearKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        counts: Tensor,
        temperature: float,
        softcaps: tuple[float | None, float | None],
        compute: torch.dtype,
        wanted: tuple[bool, bool],
    ) -> Tensor:
        """`wanted` says of `hidden` and of `weight` whether its gradient is asked for."""
        head, rows = weight.to(compute), hidden.to(compute)
        teacher_head, teacher_rows = teacher_weight.to(compute), teacher_hidden.to(compute)
        # Two networks' logits exist at once.
        chunk = max(1, chunk_rows(weight.shape[0]) // 2)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(rows) if wanted[0] else None
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if wanted[1] else None
        loss_of = _compiled_rows() if hidden.is_cuda else _rows
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], chunk):
                part = slice(start, start + chunk)
                logits, targets = rows[part] @ head.t(), teacher_rows[part] @ teacher_head.t()
                loss, gradient = loss_of(logits, targets, counts[part], temperature, softcaps)
                total += loss
                if grad_hidden is not None:
                    torch.mm(gradient, head, out=grad_hidden[part])
                if grad_weight is not None:
                    grad_weight += gradient.t() @ rows[part]
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
        scaled = (None if grad is None else grad * outer.to(grad.dtype) for grad in saved)
        return *scaled, None, None, None, None, None, None, None


def _rows(
    logits: Tensor,
    targets: Tensor,
    counts: Tensor,
    temperature: float,
    softcaps: tuple[float | None, float | None],
) -> tuple[Tensor, Tensor]:
    """`logits`, the teacher's `targets [N, V]` → summed divergence and its gradient `[N, V]` by the logits."""
    student, teacher = logits.float(), targets.float()
    slope = None
    if softcaps[0] is not None:
        bent = torch.tanh(student / softcaps[0])
        student, slope = bent * softcaps[0], 1.0 - bent.square()
    if softcaps[1] is not None:
        teacher = torch.tanh(teacher / softcaps[1]) * softcaps[1]
    mine = torch.log_softmax(student / temperature, -1)
    its = torch.log_softmax(teacher / temperature, -1)
    weights = its.exp()
    loss = torch.where(counts, (weights * (its - mine)).sum(-1), 0.0).sum()
    gradient = (mine.exp() - weights) / temperature
    if slope is not None:
        gradient = gradient * slope
    return loss, torch.where(counts[:, None], gradient, 0.0).to(logits.dtype)


@cache
def _compiled_rows() -> Any:
    return torch.compile(_rows, dynamic=False)
