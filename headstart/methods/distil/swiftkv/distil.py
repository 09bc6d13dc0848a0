"""SwiftKV's distillation: the network with all its layers is the teacher of itself with the later ones changed."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from headstart.errors import MethodError
from headstart.methods.distil.swiftkv.attention import SwiftAttention, change_, fold_, stream_of
from headstart.methods.distil.swiftkv.form import Form
from headstart.methods.registry import method
from headstart.models.decoder import Decoder
from headstart.ops.distillation import linear_kl_divergence
from headstart.training.seams import Loss, Objective, Transform

if TYPE_CHECKING:
    from headstart.training.data.packing import PackedBatch
    from headstart.training.language_model import LanguageModel


@method(
    "swiftkv-distil",
    stage="distil",
    kind="training",
    # Of the paper whose card `swiftkv` bears.
    paper=None,
    needs=("a trained model, and text like what it is asked",),
    when_not="Without `swiftkv` to serve the result: it is a plain model's no more.",
    composes="Any mixture, any optimizer.",
    conflicts="Another objective.",
)
class SwiftKVDistil(Transform, Objective):
    """Makes the checkpoint that `swiftkv` serves. The later layers get new query, key and value projections, which
    begin as copies of the old ones and alone are trained. They learn to give the next-token distributions that the
    unchanged network gives, and its stream at the last layer. The export says in its config what it is, and is refused
    by whoever would serve it as a plain model.

    Args:
        depth: how many layers stay ordinary; by default half of them, which skips half of prefill (paper: 16 of 32
            and 40 of 80).
        group: so many neighbours of the later layers share one cache of keys and values (AcrossKV); 1 is none. A
            shared projection begins as the mean of its members'.
        temperature: of both distributions (official code: 2).
        stream: weight of the mean squared error of the normalised stream that enters the last layer, over the trained
            tokens. The official code takes the stream as it is, of all tokens, with a weight of 1; normalised, it is
            of the same size in every model.
    """

    slots = ("transform", "objective")

    def __init__(self, depth: int | None = None, group: int = 1, temperature: float = 2.0, stream: float = 1.0) -> None:
        if not 0 < temperature < float("inf"):
            raise MethodError(f"swiftkv-distil: temperature must be above 0, not {temperature}")
        if not 0 <= stream < float("inf"):
            raise MethodError(f"swiftkv-distil: stream must be 0 or above, not {stream}")
        self.depth, self.group, self.temperature, self.stream = depth, group, temperature, stream

    def apply_(self, model: nn.Module) -> None:
        if not isinstance(model, Decoder):
            raise MethodError(
                f"swiftkv-distil knows the layers of this program's Decoder, not of {type(model).__name__}"
            )
        form = self._form(model)
        form.check(model.config)
        if form.depth == model.config.num_layers:
            raise MethodError(f"swiftkv-distil: with depth={form.depth} of {form.depth} there is nothing to train")
        if stream_of(model) is not None:
            return
        change_(model, form)
        model.requires_grad_(False)
        for module in model.modules():
            if isinstance(module, SwiftAttention):
                module.query.requires_grad_()
                if module.key_value is not None:
                    module.key_value.requires_grad_()

    def fold(self, model: nn.Module) -> None:
        """Put the projections where the architecture has its own, and say so in the config. What reads the result as a
        plain model computes something else."""
        if isinstance(model, Decoder) and stream_of(model) is not None:
            form = self._form(model)
            fold_(model, form)
            model.config = replace(model.config, raw=form.mark(model.config.raw))

    def _form(self, model: Decoder) -> Form:
        return Form(model.config.num_layers // 2 if self.depth is None else self.depth, self.group)

    def loss(self, model: "LanguageModel", batch: "PackedBatch") -> Loss:
        network = model.network
        stream = stream_of(network)
        assert stream is not None and isinstance(network, Decoder)
        stream.plain = True
        try:
            with torch.no_grad():
                wanted = model.hidden(batch)
        finally:
            stream.plain = False
        target = stream.last
        hidden = model.hidden(batch)
        assert target is not None and stream.last is not None
        head = network.embedding.weight if network.lm_head is None else network.lm_head.weight
        counts = batch.targets >= 0
        cap = network.config.logits_softcap
        divergence = linear_kl_divergence(
            hidden, head, wanted, head, counts, temperature=self.temperature, softcaps=(cap, cap)
        )
        error = ((stream.last.float() - target.float()).square().mean(-1) * counts).sum()
        stream.entering = stream.kept = stream.last = None
        total = self.temperature**2 * divergence + self.stream * error
        return Loss(total, counts.sum(), {"divergence": divergence.detach(), "stream_error": error.detach()})
