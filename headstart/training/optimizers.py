"""The optimizers that a recipe may name: AdamW, and Muon for matrices beside AdamW for the rest."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from headstart.training.errors import TrainingError
from headstart.training.seams import OptimizerFactory
from headstart.training.select import Anatomy


@dataclass
class AdamW(OptimizerFactory):
    """AdamW (arXiv 1711.05101) with learning rates of their own for embeddings and for vectors.

    Args:
        lr: peak for matrices inside the blocks.
        embedding_lr: peak for embeddings and head; None is `lr`.
        vector_lr: peak for norms and biases; None is `lr`.
        betas: decay of the two moments (0.9, 0.95 as for Llama, arXiv 2302.13971).
        eps: added to the root of the second moment.
        weight_decay: on matrices alone (Llama: 0.1); embeddings, norms and biases are not decayed.
    """

    lr: float = 3e-3
    embedding_lr: float | None = None
    vector_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1

    def build(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        return [_adamw(self, parameter_groups(model))]


@dataclass
class Muon(OptimizerFactory):
    """Muon (Jordan et al., 2024; arXiv 2502.16982) for matrices inside the blocks, AdamW for all else.

    Args:
        lr: peak for matrices; with updates scaled to AdamW's size, as by Moonlight, AdamW's rate fits.
        embedding_lr, vector_lr: peaks under AdamW; None is `lr`.
        momentum: of Muon (0.95).
        betas, eps: of AdamW.
        weight_decay: on matrices (Moonlight: 0.1).
    """

    lr: float = 3e-3
    embedding_lr: float | None = None
    vector_lr: float | None = None
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1

    def build(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        groups = parameter_groups(model)
        flat = [p for p in groups["matrices"] if p.ndim == 2]
        # Experts are stacked in three dimensions, where orthogonal has no meaning.
        rest = {**groups, "matrices": [p for p in groups["matrices"] if p.ndim != 2]}
        optimizers: list[torch.optim.Optimizer] = []
        if flat:
            optimizers.append(
                BatchedMuon(
                    flat,
                    lr=self.lr,
                    momentum=self.momentum,
                    weight_decay=self.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        if any(rest.values()):
            optimizers.append(_adamw(self, rest))
        return optimizers


class BatchedMuon(torch.optim.Muon):
    """PyTorch's Muon, with all matrices of one shape orthogonalised together.

    PyTorch goes through them one by one, in kernels so small that launching them costs more than running them.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        if closure is not None or any(isinstance(p, DTensor) for p in parameters):
            # Shards of one matrix are gathered one matrix at a time.
            return super().step(closure)
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(tuple(parameter.shape), []).append(parameter)
            for shape, matrices in alike.items():
                self._update(matrices, shape, group)
        return None

    def _update(self, matrices: list[Tensor], shape: tuple[int, ...], group: dict[str, Any]) -> None:
        """Move matrices of one shape `[out, in]`."""
        for matrix in matrices:
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        momenta = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        beta, rate = group["momentum"], group["lr"]
        torch._foreach_lerp_(momenta, gradients, 1 - beta)  # pyright: ignore[reportPrivateImportUsage]
        ahead = torch._foreach_lerp(gradients, momenta, beta) if group["nesterov"] else momenta  # pyright: ignore[reportPrivateImportUsage]
        updates = orthogonalised(torch.stack(list(ahead)), group["ns_coefficients"], group["ns_steps"], group["eps"])
        # Moonlight's scale, which gives an update the size of AdamW's.
        scale = 0.2 * max(shape) ** 0.5
        torch._foreach_mul_(matrices, 1 - rate * group["weight_decay"])  # pyright: ignore[reportPrivateImportUsage]
        moves = list((updates.to(matrices[0].dtype) * (-rate * scale)).unbind())
        torch._foreach_add_(matrices, moves)  # pyright: ignore[reportPrivateImportUsage]


def orthogonalised(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """The nearest orthogonal matrices, roughly, by Newton and Schulz's iteration in bfloat16.

    Args:
        matrices: `[N, out, in]`.
        coefficients: of the quintic polynomial that moves singular values towards 1.
        steps: how often it is applied.
        eps: the least norm that is divided by.

    Returns:
        `[N, out, in]` bfloat16.
    """
    a, b, c = coefficients
    wide = matrices.shape[1] <= matrices.shape[2]
    x = (matrices if wide else matrices.mT).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


def _adamw(settings: AdamW | Muon, groups: dict[str, list[nn.Parameter]]) -> torch.optim.AdamW:
    """AdamW over those of the groups that are not empty; only matrices are decayed."""
    lr, embedding_lr, vector_lr = settings.lr, settings.embedding_lr, settings.vector_lr
    rates = {
        "matrices": lr,
        "embeddings": lr if embedding_lr is None else embedding_lr,
        "vectors": lr if vector_lr is None else vector_lr,
    }
    described = [
        {"params": found, "lr": rates[name], "weight_decay": settings.weight_decay if name == "matrices" else 0.0}
        for name, found in groups.items()
        if found
    ]
    return torch.optim.AdamW(described, betas=settings.betas, eps=settings.eps, fused=True)


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The trained parameters, each once: `embeddings` (head included), `matrices` and `vectors`.

    Raises:
        TrainingError: nothing is trained.
    """
    anatomy = Anatomy.of(model)
    tables = {*anatomy.embeddings, *([anatomy.head] if anatomy.head else [])}
    groups: dict[str, list[nn.Parameter]] = {"embeddings": [], "matrices": [], "vectors": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.rpartition(".")[0] in tables:
            groups["embeddings"].append(parameter)
        else:
            groups["matrices" if parameter.ndim > 1 else "vectors"].append(parameter)
    if not any(groups.values()):
        raise TrainingError("no weight of the model is trained; leave out the method that froze them all")
    return groups
