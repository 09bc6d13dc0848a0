"""The questions that the training loop asks and a method may answer. Each has a plain default or none at all.

A method subclasses a seam, says which **slots** it fills, and carries its card (`headstart.methods`). It sees the
network as any `nn.Module`: children are replaced by `setattr` on their parent, nothing is patched.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from headstart.training.documents import Document

if TYPE_CHECKING:
    from headstart.training.data.packing import PackedBatch
    from headstart.training.language_model import LanguageModel
    from headstart.training.loop import Trainer


class TrainingSeam:
    """What all training seams share.

    Attributes:
        slots: the places in the loop that an implementation fills.
        kind: what the registry sorts methods by.
        repeatable: whether several may fill the slot at once, in the order given.
    """

    slots: ClassVar[tuple[str, ...]] = ()
    kind: ClassVar[str] = "training"
    repeatable: ClassVar[bool] = True

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs, in plain values and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""


@dataclass(frozen=True)
class DocumentContext:
    """What a stage may know of the place of a document.

    Attributes:
        source: the source it was drawn from.
        ordinal: how many documents of the run came before it; the same after a resume.
        encode: text → token ids, without special tokens.
        rng: randomness of this document and stage alone, the same after a resume.
    """

    source: str
    ordinal: int
    encode: Callable[[str], list[int]]
    rng: np.random.Generator


class DataStage(TrainingSeam, ABC):
    """What does the model read, and what stands around it?"""

    slots = ("data_stage",)

    @abstractmethod
    def __call__(self, document: Document, context: DocumentContext) -> Iterable[Document]:
        """The documents that are read instead: none, one or several."""


@dataclass(frozen=True)
class Loss:
    """A batch's loss.

    Attributes:
        total: scalar, summed over the tokens that count, in nats; the loop divides by the tokens of a whole step.
        tokens: scalar int64 on the loss's device, how many tokens count.
        metrics: further scalars to log, each summed over `tokens`.
    """

    total: Tensor
    tokens: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Objective(TrainingSeam, ABC):
    """What is the model taught?"""

    slots = ("objective",)
    repeatable = False

    @abstractmethod
    def loss(self, model: "LanguageModel", batch: "PackedBatch") -> Loss:
        """The summed loss of a batch."""


class NextToken(Objective):
    """Predict every trained token from those before it in its document: the default."""

    def loss(self, model: "LanguageModel", batch: "PackedBatch") -> Loss:
        total = model.next_token_loss(model.hidden(batch), batch.targets)
        return Loss(total, (batch.targets >= 0).sum())


class OptimizerFactory(TrainingSeam, ABC):
    """How are weights moved?"""

    slots = ("optimizer",)
    repeatable = False

    @abstractmethod
    def build(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        """Optimizers that together hold every trained parameter once. Their state holds tensors only; each group's
        `lr` is its peak, which the schedule scales."""


class Schedule(ABC):
    """The learning rate over a phase, as a factor of its peak."""

    @abstractmethod
    def factor(self, step: int, steps: int) -> float:
        """The factor of step `step` (from 0) of `steps`."""


class Transform(TrainingSeam, ABC):
    """What is the model turned into?"""

    slots = ("transform",)

    @abstractmethod
    def apply_(self, model: nn.Module) -> None:
        """Change the model in place; doing it twice is the same as once."""

    @abstractmethod
    def fold(self, model: nn.Module) -> None:
        """Turn it back into plain weights that any loader reads, giving the same outputs."""


class Callback(TrainingSeam):
    """What happens on the way? Every hook is empty by default."""

    slots = ("callback",)

    def on_start(self, trainer: "Trainer") -> None:
        """Once per phase, before its first step or after a resume."""

    def on_batch(self, trainer: "Trainer", batch: "PackedBatch") -> None:
        """Before each micro-batch runs."""

    def on_gradients(self, trainer: "Trainer") -> None:
        """When a step's gradients are complete, before clipping."""

    def on_step(self, trainer: "Trainer") -> None:
        """After the optimizers moved the weights."""

    def on_eval(self, trainer: "Trainer", results: dict[str, float]) -> None:
        """After an evaluation, which may be added to."""

    def on_end(self, trainer: "Trainer") -> None:
        """After a phase's last step, before it is evaluated and its last checkpoint is written."""


TRAINING_SLOTS: dict[str, type[TrainingSeam]] = {
    slot: seam for seam in (DataStage, Objective, OptimizerFactory, Transform, Callback) for slot in seam.slots
}
"""Every slot of the loop with the seam that fills it."""
