"""Long-context analysis (arXiv 2405.08944): what a long context costs, from a config and a device's peak numbers."""

from dataclasses import dataclass

from headstart.evaluation.plan.costs import ModelCosts
from headstart.evaluation.plan.devices import Device
from headstart.methods.registry import Claim, Paper, method


@dataclass(frozen=True)
class Quantities:
    """The four quantities at one context length; times in seconds.

    Attributes:
        length: tokens of context n.
        kv_bytes: of one user.
        users: whose keys fit beside the weights; 0 where not even one does, negative where the weights do not.
        prefill: from the prompt to the first token.
        attention_share: of the FLOPs of prefill.
        decode: of one token of one user.
        decode_all: of one step of all users that fit, which gives each of them a token.
        switch: one user's keys out and another's in; None without another memory.
    """

    length: int
    kv_bytes: int
    users: int
    prefill: float
    attention_share: float
    decode: float
    decode_all: float
    switch: float | None


@method(
    "long-context-analysis",
    stage="analysis",
    kind="analysis",
    paper=Paper(
        "Challenges in Deploying Long-Context Transformers: A Theoretical Peak Performance Analysis",
        arxiv="2405.08944",
        venue="arXiv, 2024",
    ),
    claim=Claim(
        "50K instead of 4K: prefill 14.1 s instead of 0.89 s, 1 user instead of about 20",
        setting="""Yi-34B on one A100 80GB, at peak; quoted from summaries; our own check: decode follows from
        the formulas, 20 users do not (they give 12), and the attention term of prefill looks halved""",
        source="third-party summaries of the paper, recomputed",
    ),
    when_not="As a prediction: it gives bounds at peak hardware, of which real systems reach a fraction.",
    composes="Every method of cache, bits and schedule, as the prediction to compare with.",
    conflicts="None known.",
)
class LongContextAnalysis:
    """A calculator of what long context costs in serving, from the configuration of a model and the peak numbers of a
    device. All extra cost is traced to the size of the cache. It shows in four quantities: how many users fit, how long
    prefill takes, how long decoding takes, and how long switching between users takes. The same terms say which way of
    shrinking the cache improves which quantity.

    `commands` are how one uses it: it fills no slot.

    Args:
        devices: of this kind, with weights and keys split over them; what they say to each other is neglected.
    """

    slots: tuple[str, ...] = ()
    commands = ("headstart plan MODEL --gpu h100", "headstart plan --fit")

    def __init__(self, devices: int = 1) -> None:
        self.devices = devices

    def at(self, costs: ModelCosts, device: Device, length: int) -> Quantities:
        """The four quantities of a model on a device at a context of so many tokens."""
        kv, count = costs.kv_bytes(length), self.devices
        flops, bandwidth = device.peak(costs.dtype) * count, device.bandwidth * count
        users = int((device.memory * count - costs.weight_bytes) // kv)
        linear, attention = costs.linear_flops(length), costs.attention_flops(length)
        return Quantities(
            length=length,
            kv_bytes=kv,
            users=users,
            prefill=(linear + attention) / flops,
            attention_share=attention / (linear + attention),
            decode=_step(costs, length, 1, flops, bandwidth),
            decode_all=_step(costs, length, max(users, 1), flops, bandwidth),
            switch=None if device.link is None else 2 * kv / (device.link * count),
        )


def _step(costs: ModelCosts, length: int, batch: int, flops: float, bandwidth: float) -> float:
    """A decode step at peak: what it reads over the bandwidth, or what it computes, whichever takes longer. Weights are
    read once for all, keys for each."""
    read = costs.decode_weight_bytes(batch) + batch * costs.kv_read_bytes(length)
    return max(read / bandwidth, costs.decode_flops(length, batch) / flops)
