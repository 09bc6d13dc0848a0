"""LongGen's training: the sparse layers are sparse from the first step on, while the context is stretched."""

from dataclasses import replace
from typing import Any, Literal

from torch import nn

from headstart.errors import MethodError
from headstart.methods.adapt.longgen.form import Form, middle
from headstart.methods.registry import method
from headstart.models.config import ModelConfig
from headstart.models.decoder import Decoder
from headstart.models.rope import Rope
from headstart.training.seams import Transform


@method(
    "longgen-convert",
    stage="adapt",
    kind="training",
    # Of the paper whose card `longgen` bears.
    paper=None,
    needs=("a trained model, and texts as long as it is to read",),
    when_not="Without `longgen` to serve the result: it is a plain model's no more.",
    composes="Any objective, any mixture, any optimizer.",
    conflicts="Models with sliding windows.",
)
class LongGenConvert(Transform):
    """Makes the checkpoint that `longgen` serves. The layers outside of the middle see a few blocks of their document
    from the first step on, and begin with the weights that they have. RoPE's base and the model's length can be raised
    at the same time. The export says in its config what it is, and is refused by whoever would serve it as a plain
    model.

    Args:
        block: tokens of a block.
        sink: first blocks that are seen.
        local: nearest blocks that are seen, the query's own among them.
        stride: every so-manieth block is seen from everywhere; 0 is none.
        full: layers in the middle that see everything (paper: a third of them, which is the default).
        length: tokens that the model is to read, at least those that it can; by default it stays.
        theta: RoPE's base; by default it stays.
        weights: what is trained: "all" as in the paper, or "qkv", the projections to queries, keys and values alone.
    """

    def __init__(
        self,
        block: int = 64,
        sink: int = 1,
        local: int = 16,
        stride: int = 64,
        full: int | None = None,
        length: int | None = None,
        theta: float | None = None,
        weights: Literal["all", "qkv"] = "all",
    ) -> None:
        self.block, self.sink, self.local, self.stride, self.full = block, sink, local, stride, full
        self.length, self.theta, self.weights = length, theta, weights
        if theta is not None and not 1 < theta < float("inf"):
            raise MethodError(f"longgen-convert: theta must be above 1, not {theta}")

    def apply_(self, model: nn.Module) -> None:
        if not isinstance(model, Decoder):
            raise MethodError(
                f"longgen-convert knows the layers of this program's Decoder, not of {type(model).__name__}"
            )
        form = self._form(model.config)
        form.check(model.config)
        if any(spec.reach for spec in model.attention_specs):
            return
        self._stretch(model)
        for layer in form.sparse(model.config):
            attention: Any = model.layers[layer].attention
            attention.spec = replace(attention.spec, reach=form.reach)
            model.attention_specs[layer] = attention.spec
        if self.weights == "qkv":
            model.requires_grad_(False)
            for block in model.layers:
                attention = block.attention
                attention.qkv.requires_grad_()

    def fold(self, model: nn.Module) -> None:
        """Say in the config what it is. What reads the result as a plain model computes something else."""
        if isinstance(model, Decoder) and any(spec.reach for spec in model.attention_specs):
            model.config = replace(model.config, raw=self._form(model.config).mark(model.config.raw))

    def _form(self, config: ModelConfig) -> Form:
        full = middle(config) if self.full is None else self.full
        return Form(self.block, self.sink, self.local, self.stride, full)

    def _stretch(self, model: Decoder) -> None:
        """Raise the length and the base of RoPE."""
        raw, has = dict(model.config.raw), model.config.max_position
        if self.length is not None:
            if self.length < has:
                raise MethodError(f"longgen-convert: this model reads {has} tokens already, more than {self.length}")
            raw["max_position_embeddings"] = self.length
        if self.theta is not None:
            raw["rope_theta"] = self.theta
            if isinstance(raw.get("rope_parameters"), dict):
                raw["rope_parameters"] = raw["rope_parameters"] | {"rope_theta": self.theta}
        model.config = ModelConfig.from_hf(raw, "the converted config")
        model.ropes = {kind: Rope(rope) for kind, rope in model.config.ropes.items()}
