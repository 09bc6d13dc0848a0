"""One arm of a bench, trained by the ordinary loop, and what can be measured of it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console

from headstart.evaluation.rig.corpus import RigCorpus
from headstart.models.decoder import Decoder
from headstart.training.data.mixture import InOrder
from headstart.training.data.packing import IGNORED, PackedBatch, Packer, collate
from headstart.training.distributed import World
from headstart.training.documents import Document
from headstart.training.flops import training_flops
from headstart.training.language_model import LanguageModel
from headstart.training.loop import Trainer
from headstart.training.recipe import Recipe
from headstart.training.run import Run, RunOptions
from headstart.training.seams import Callback

_EVALUATION_TOKENS = 16_384


@dataclass
class Costs:
    """What a training cost.

    Attributes:
        parameters: trained ones, at the end.
        tokens: read.
        trained_tokens: predicted.
        flops: of forward and backward passes, without optimizers.
    """

    parameters: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    flops: float = 0.0


@dataclass
class TrainedArm:
    """A trained arm of a bench.

    Attributes:
        arm: its name.
        seed: of the run.
        network: with its methods still on.
        corpus: what it read.
        costs: what it took.
    """

    arm: str
    seed: int
    network: Decoder
    corpus: RigCorpus
    costs: Costs
    _run: Run = field(repr=False)

    def losses(self, documents: Iterable[Document]) -> list[np.ndarray]:
        """The loss of every trained token of each document, float64 `[N]` in nats.

        Documents are read as in training: BOS before and EOS after each, which is predicted too.
        """
        return token_losses(self.network, documents, self.corpus.tokenizer.bos_token_id, self._eos)

    def held_out_loss(self, name: str) -> float:
        """Mean loss over the held-out tokens of a source, in nats a byte."""
        return float(np.concatenate(self.losses(self.corpus.held_out(name))).mean())

    def export(self) -> Path:
        """A Hugging Face directory with the weights, methods folded away."""
        directory = self._run.options.out / "model"
        if not directory.exists():
            self._run.export(directory)
        return directory

    @property
    def _eos(self) -> int | None:
        return self.corpus.tokenizer.eos_token_id


class _Meter(Callback):
    """Counts what training takes."""

    def __init__(self) -> None:
        self.costs = Costs()

    def on_batch(self, trainer: Trainer, batch: PackedBatch) -> None:
        self.costs.tokens += len(batch.token_ids)
        self.costs.trained_tokens += batch.trained_tokens
        self.costs.flops += training_flops(trainer.model.network, batch.lengths)

    def on_end(self, trainer: Trainer) -> None:
        self.costs.parameters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)


def train_arm(name: str, recipe: Recipe, corpus: RigCorpus, out: Path) -> TrainedArm:
    """Train an arm on one thread.

    Args:
        name: of the arm.
        recipe: what it does.
        corpus: what it reads.
        out: a new directory for what the run writes.

    Raises:
        TrainingError, MethodError: the recipe cannot be carried out, or the loss is not a number.
    """
    out.mkdir(parents=True)
    options = RunOptions(out, corpus.directory, "cpu", export_dtype=torch.float32, console=Console(quiet=True))
    meter = _Meter()
    with one_thread():
        run = Run(recipe, options, World(0, 1, torch.device("cpu"), None))
        for stack in run.stacks:
            stack.methods.append(meter)
        run.execute()
    run.network.eval()
    return TrainedArm(name, recipe.seed, run.network, corpus, meter.costs, run)


@torch.no_grad()
def token_losses(network: Decoder, documents: Iterable[Document], bos: int | None, eos: int | None) -> list[np.ndarray]:
    """As `TrainedArm.losses`; empty documents are left out."""
    kept = [document for document in documents if len(document)]
    model, losses = LanguageModel(network), []
    for group in _groups(kept):
        row = next(Packer(InOrder("held-out", group), 1 << 24, bos=bos, eos=eos, keep_last=True))
        batch = collate([row])
        loss = F.cross_entropy(
            network.logits(model.hidden(batch)).double(), batch.targets, ignore_index=IGNORED, reduction="none"
        )
        each = zip(loss.split(batch.lengths), batch.targets.split(batch.lengths), strict=True)
        losses.extend(part[targets != IGNORED].numpy() for part, targets in each)
    return losses


def _groups(documents: list[Document]) -> Iterator[list[Document]]:
    """Documents in groups of bounded size."""
    group: list[Document] = []
    for document in documents:
        if group and sum(map(len, group)) + len(document) > _EVALUATION_TOKENS:
            yield group
            group = []
        group.append(document)
    if group:
        yield group


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: small matrices are no faster on more, and sums come out in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
