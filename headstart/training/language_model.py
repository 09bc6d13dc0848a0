"""Any causal language model behind one face: a packed batch goes in, hidden states and the loss come out."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headstart.models.decoder import AttentionSpec, Decoder
from headstart.ops.cross_entropy import linear_cross_entropy
from headstart.ops.packed_attention import PackedMask, Segments, packed_attention
from headstart.training.errors import TrainingError
from headstart.training.seams import Loss, Objective

if TYPE_CHECKING:
    from headstart.training.data.packing import PackedBatch


class LanguageModel(nn.Module):
    """Runs a network over packed documents that do not see one another.

    The loss is made inside `forward`, so that whatever wraps this module (sharding, compilation) sees every use of a
    weight.

    Args:
        network: a `Decoder`, or a causal language model of Transformers.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: "PackedBatch", objective: Objective) -> Loss:
        """The objective's loss of a batch."""
        return objective.loss(self, batch)

    def hidden(self, batch: "PackedBatch") -> Tensor:
        """`[T, hidden]` after the final norm."""
        if isinstance(self.network, Decoder):
            segments = Segments.of(batch.lengths, batch.positions)
            mask = PackedMask(segments)
            specs = self.network.attention_specs
            mask.prepare({spec.window for spec in specs}, {spec.reach for spec in specs if spec.reach is not None})
            lengths = None
            if any(rope.length_dependent for rope in self.network.ropes.values()):
                own = torch.tensor(batch.lengths, device=batch.positions.device)
                lengths = own.repeat_interleave(own, output_size=len(batch.positions))
            return self.network(batch.token_ids, batch.positions, PackedAttend(mask), lengths)
        network: Any = self.network
        body = network.get_decoder() if hasattr(network, "get_decoder") else network.base_model
        # A restart of the positions is how Transformers is told where documents begin.
        out = body(input_ids=batch.token_ids[None], position_ids=batch.positions[None], use_cache=False)
        return out.last_hidden_state[0]

    def next_token_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The summed cross entropy of the rows `[T, hidden]` whose target `[T]` is not `IGNORED`.

        Raises:
            TrainingError: the network makes its logits by more than a product with a weight.
        """
        if isinstance(self.network, Decoder):
            head = self.network.lm_head
            weight = self.network.embedding.weight if head is None else head.weight
            return linear_cross_entropy(hidden, weight, targets, self.network.config.logits_softcap)
        return linear_cross_entropy(hidden, *_plain_head(self.network, targets))


def _plain_head(network: Any, targets: Tensor) -> tuple[Tensor, Tensor, float | None]:
    """The weight of the output layer of a model of Transformers, the targets, and the softcap of its logits."""
    head, config = network.get_output_embeddings(), network.config.get_text_config()
    scaled = [name for name in ("logits_scaling", "logit_scale") if getattr(config, name, 1) not in (None, 1)]
    if head is None or getattr(head, "bias", None) is not None or scaled:
        what = scaled[0] if scaled else "no output layer" if head is None else "a bias in its output layer"
        raise TrainingError(f"{type(network).__name__} has {what}, which the loss does not know; give an objective")
    return head.weight, targets, getattr(config, "final_logit_softcapping", None)


class PackedAttend:
    """Attention over the packed documents of one batch; keeps no cache."""

    def __init__(self, mask: PackedMask) -> None:
        self.mask = mask

    def __call__(self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Values come straight from a product, so theirs is the dtype to compute in: under autocast, norms and RoPE have
        # widened queries and keys.
        q, k = q.to(v.dtype), k.to(v.dtype)
        rule: dict[str, Any] = {"window": spec.window, "softcap": spec.softcap, "reach": spec.reach}
        return packed_attention(q, k, v, self.mask, scale=spec.scale, **rule)
