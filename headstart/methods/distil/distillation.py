"""Knowledge distillation (arXiv 1503.02531): a small model learns a trained one's next-token distributions."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstart.checkpoints.reader import load_checkpoint
from headstart.errors import MethodError
from headstart.methods.registry import Claim, Paper, method
from headstart.models.decoder import Decoder
from headstart.ops.distillation import linear_kl_divergence
from headstart.training.language_model import LanguageModel
from headstart.training.seams import Loss, Objective

if TYPE_CHECKING:
    from headstart.training.data.packing import PackedBatch


@method(
    "distillation",
    stage="distil",
    kind="training",
    paper=Paper("Distilling the Knowledge in a Neural Network", arxiv="1503.02531", venue="NIPS Workshop 2014"),
    needs=("a trained model with the same vocabulary",),
    when_not="Without room for the teacher beside the model, or where its text is at hand and time is not.",
    claim=Claim(
        "one distilled model keeps over 80% of an ensemble's gain in frame accuracy",
        setting="speech recognition, an ensemble of 10 acoustic models against one of them trained alone",
        source="section 4.1",
    ),
    composes="Any mixture, any optimizer; drafts for `speculative` and `pearl`.",
    conflicts="Another objective.",
)
class Distillation(Objective):
    """Trains a model to give the next-token distributions of another one. Every trained token teaches the whole
    distribution instead of the one word that happened to follow, so that a small model agrees with a large one after
    much less text. It is how drafts for speculative decoding are made, whose guesses stand as often as they agree. The
    two need the same vocabulary and nothing else in common.

    Args:
        teacher: directory, hub id or embedded name of the model to learn from.
        temperature: of both distributions; 1 teaches what is sampled from.
    """

    def __init__(self, teacher: str = "default", temperature: float = 1.0) -> None:
        if not 0 < temperature < float("inf"):
            raise MethodError(f"distillation: temperature must be above 0, not {temperature}")
        self.teacher, self.temperature = teacher, temperature
        self._teacher: LanguageModel | None = None

    def loss(self, model: LanguageModel, batch: "PackedBatch") -> Loss:
        network = model.network
        if not isinstance(network, Decoder):
            raise MethodError(f"distillation trains this program's Decoder, not a {type(network).__name__}")
        teacher = self._loaded(network)
        assert isinstance(teacher.network, Decoder)
        with torch.no_grad():
            wanted = teacher.hidden(batch)
        counts = batch.targets >= 0
        divergence = linear_kl_divergence(
            model.hidden(batch),
            _head(network),
            wanted,
            _head(teacher.network),
            counts,
            temperature=self.temperature,
            softcaps=(network.config.logits_softcap, teacher.network.config.logits_softcap),
        )
        return Loss(self.temperature**2 * divergence, counts.sum(), {"divergence": divergence.detach()})

    def _loaded(self, network: Decoder) -> LanguageModel:
        """The teacher, read when it is first needed: where the model is, in the dtype that products are in."""
        if self._teacher is None:
            device = network.embedding.weight.device
            dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32
            found = load_checkpoint(self.teacher, dtype, device, skip_tokenizer_init=True)
            mine, its = network.config.vocab_size, found.config.vocab_size
            if mine != its:
                raise MethodError(
                    f"distillation: the teacher {self.teacher} has a vocabulary of {its} tokens and the model one of "
                    f"{mine}; give the model the teacher's"
                )
            self._teacher = LanguageModel(found.decoder)
        return self._teacher


def _head(network: Decoder) -> Tensor:
    """`[V, hidden]`, what makes logits."""
    return network.embedding.weight if network.lm_head is None else network.lm_head.weight
