"""A step between its start on the device and the moment when the host reads what it drew."""

from dataclasses import dataclass, field

from torch import Tensor

from headstart.engine.batch import Allotment
from headstart.engine.request import Sequence
from headstart.engine.seams import PageLease
from headstart.engine.watch import Planned
from headstart.ops.staging import HostCopy


class Drawn:
    """Tokens on the device, already on their way to the host.

    Attributes:
        tokens: int64 `[N]`, on the device.
    """

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens
        self._copy = HostCopy(tokens)

    def read(self) -> list[int]:
        """The tokens, once the device has drawn them."""
        return self._copy.read().tolist()


@dataclass
class StepInFlight:
    """What was started.

    Attributes:
        allotments: who takes part.
        planned: what the watcher noted at the start.
        due: those whose next token is drawn.
        hidden: `[N, hidden]`, their rows, good until the next step runs.
        drawn: their tokens; None where the host has to look on while they are drawn.
    """

    allotments: list[Allotment]
    planned: Planned
    due: list[Allotment]
    hidden: Tensor
    drawn: Drawn | None = None
    _leases: dict[Sequence, PageLease | None] = field(init=False)

    def __post_init__(self) -> None:
        self._leases = {allotment.sequence: allotment.sequence.lease for allotment in self.allotments}

    def stands(self, allotment: Allotment) -> bool:
        """Whether the sequence still holds the pages that it ran with: it has not ended, nor been preempted."""
        lease = allotment.sequence.lease
        return lease is not None and lease is self._leases[allotment.sequence]

    def standing(self) -> list[Allotment]:
        """The allotments that stand."""
        return [allotment for allotment in self.allotments if self.stands(allotment)]
