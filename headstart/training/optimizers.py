"""The optimizers that a recipe may name: AdamW, and Muon for matrices beside AdamW for the rest."""

from dataclasses import dataclass

import torch
from torch import nn

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
                torch.optim.Muon(
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
