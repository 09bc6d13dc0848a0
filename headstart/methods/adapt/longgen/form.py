"""Which layers of a LongGen network see everything, what the others see, and how a checkpoint says so."""

import re
from dataclasses import asdict, dataclass
from typing import Any

from headstart.checkpoints.reader import METHOD_FIELD
from headstart.errors import MethodError
from headstart.models.config import ModelConfig
from headstart.ops.attention.reach import Reach

KEY = "longgen"
_MOST = 1 << 20


@dataclass(frozen=True)
class Form:
    """A LongGen network.

    Attributes:
        block: tokens of a block.
        sink, local, stride: blocks that the sparse layers see, as in `Reach`.
        full: how many layers in the middle see everything.
    """

    block: int
    sink: int
    local: int
    stride: int
    full: int

    @property
    def reach(self) -> Reach:
        """What the sparse layers see."""
        return Reach(self.block, self.sink, self.local, self.stride)

    def sparse(self, config: ModelConfig) -> list[int]:
        """The layers that see blocks only: all but the middle ones."""
        first = (config.num_layers - self.full) // 2
        return [layer for layer in range(config.num_layers) if not first <= layer < first + self.full]

    def check(self, config: ModelConfig) -> None:
        """Raises MethodError for what this model cannot be."""
        if not 0 <= self.full <= config.num_layers:
            raise MethodError(
                f"{KEY}: full must be 0 to {config.num_layers} for this model of {config.num_layers} layers, "
                f"not {self.full}"
            )
        for name, least in (("block", 1), ("sink", 0), ("local", 1), ("stride", 0)):
            if not least <= getattr(self, name) <= _MOST:
                nothing = ", since 0 leaves a token nothing to see" if name == "local" else ""
                raise MethodError(f"{KEY}: {name} must be {least} to {_MOST}{nothing}, not {getattr(self, name)}")
        if any(config.windows):
            raise MethodError(f"{KEY}: this model has sliding windows already, which its blocks cannot stand beside")

    def mark(self, raw: dict[str, Any]) -> dict[str, Any]:
        """The config of a checkpoint in this form."""
        return raw | {METHOD_FIELD: f"{KEY}:" + ",".join(f"{name}={value}" for name, value in asdict(self).items())}

    @classmethod
    def of(cls, raw: dict[str, Any]) -> "Form | None":
        """The form that a checkpoint's config tells; None for a plain model."""
        found = re.fullmatch(
            rf"{KEY}:block=(\d+),sink=(\d+),local=(\d+),stride=(\d+),full=(\d+)", str(raw.get(METHOD_FIELD, ""))
        )
        return None if found is None else cls(*map(int, found.groups()))


def middle(config: ModelConfig) -> int:
    """A third of the layers, rounded up."""
    return -(-config.num_layers // 3)
