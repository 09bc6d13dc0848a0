"""Broken methods, one for each contract, and one that keeps them all."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from headstart.methods import registry
from headstart.models.layers import Linear
from headstart.training.data.packing import PackedBatch
from headstart.training.loop import Trainer
from headstart.training.seams import Callback, Transform
from tests.methods.contract.examples import Example, plain_parameters


class LowRank(nn.Module):
    """A matrix beside which a product of two thin ones is added."""

    def __init__(self, inner: nn.Module, rank: int = 2) -> None:
        super().__init__()
        weight: Any = inner.weight
        self.inner = inner
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))
        self.down = nn.Parameter(torch.full((rank, weight.shape[1]), 0.01))

    @property
    def weight(self) -> Tensor:
        return self.inner.weight  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x @ self.down.t() @ self.up.t()


def first_block(model: nn.Module) -> Any:
    return model.get_submodule("layers.0.mlp")


class Good(Transform):
    """Trains a low-rank addition to one matrix and leaves all else alone."""

    def apply_(self, model: nn.Module) -> None:
        block = first_block(model)
        if not isinstance(block.down, LowRank):
            model.requires_grad_(False)
            block.down = LowRank(block.down)

    def fold(self, model: nn.Module) -> None:
        block = first_block(model)
        if isinstance(block.down, LowRank):
            plain: Linear = block.down.inner  # type: ignore[assignment]
            plain.weight.data += block.down.up.data @ block.down.down.data
            block.down = plain


class Loud(Good):
    """Begins with an addition that is not zero."""

    def apply_(self, model: nn.Module) -> None:
        fresh = not isinstance(first_block(model).down, LowRank)
        super().apply_(model)
        if fresh:
            first_block(model).down.up.data.fill_(0.05)


class Leaky(Good):
    """Forgets to freeze the embedding."""

    def apply_(self, model: nn.Module) -> None:
        super().apply_(model)
        model.get_submodule("embedding").requires_grad_()


class Pickled(Callback):
    """Keeps an object of its own in the checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        return {"self": PickledState()}


class PickledState:
    """Nothing that `weights_only` reads."""


class Forgetful(Callback):
    """Lets the gradient shrink from step to step, and forgets after a resume how far it was."""

    def __init__(self) -> None:
        self.calls = 0

    def on_gradients(self, trainer: Trainer) -> None:
        self.calls += 1
        for parameter in trainer.model.parameters():
            if parameter.grad is not None:
                parameter.grad *= 1 / self.calls
        trainer.recipe = trainer.recipe.model_copy(update={"clip": None})


class Unfolded(Good):
    """Throws the addition away instead of folding it in."""

    def fold(self, model: nn.Module) -> None:
        block = first_block(model)
        if isinstance(block.down, LowRank):
            block.down = block.down.inner


class Left(Good):
    """Leaves the addition where no other program looks for it."""

    def fold(self, model: nn.Module) -> None:
        return


class Stacking(Good):
    """Adds another addition each time."""

    def apply_(self, model: nn.Module) -> None:
        model.requires_grad_(False)
        block = first_block(model)
        block.down = LowRank(block.down)

    def fold(self, model: nn.Module) -> None:
        while isinstance(first_block(model).down, LowRank):
            super().fold(model)


class Local(Callback):
    """Scales gradients by the tokens of its own rank instead of all."""

    def __init__(self) -> None:
        self.tokens = 0

    def on_batch(self, trainer: Trainer, batch: PackedBatch) -> None:
        self.tokens = batch.trained_tokens

    def on_gradients(self, trainer: Trainer) -> None:
        for parameter in trainer.model.parameters():
            if parameter.grad is not None:
                parameter.grad *= self.tokens / 100
        trainer.recipe = trainer.recipe.model_copy(update={"clip": None})


LOW_RANK_MOVES = ("layers.0.mlp.down.up", "layers.0.mlp.down.down")


def low_rank_parameters(network: nn.Module) -> float:
    """Two thin matrices beside the one of the first block."""
    weight: Any = first_block(network).down.weight
    return 2 * sum(weight.shape)


TOYS: dict[str, type] = {
    "toy-good": Good,
    "toy-loud": Loud,
    "toy-leaky": Leaky,
    "toy-pickled": Pickled,
    "toy-forgetful": Forgetful,
    "toy-unfolded": Unfolded,
    "toy-left": Left,
    "toy-stacking": Stacking,
    "toy-local": Local,
}

EXAMPLES = {key: Example(key) for key in TOYS} | {
    "toy-good": Example("toy-good", moves=LOW_RANK_MOVES, trained_parameters=low_rank_parameters),
    "toy-leaky": Example("toy-leaky", moves=LOW_RANK_MOVES),
    "toy-heavy": Example("toy-good", trained_parameters=plain_parameters),
    "toy-undone": Example("toy-loud", changed=lambda before, after: torch.equal(before, after)),
}


@contextmanager
def registered() -> Iterator[None]:
    """The toys in the registry, for as long as they are needed."""
    registry.catalogue()
    before = dict(registry._METHODS)
    for key, toy in TOYS.items():
        registry.method(key, stage="pretrain", paper=None, kind="training")(toy)
    try:
        yield
    finally:
        registry._METHODS.clear()
        registry._METHODS.update(before)
