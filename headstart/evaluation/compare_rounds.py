"""What all benchmarks share: rounds in which the sides take turns, and who hears how a run goes on."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

# Why a run ended, in its result and in that of a load.
INTERRUPTED, TERMINATED = "interrupted by Ctrl-C", "ended by SIGTERM"
# Others on the machine that take more of it than this disturb the figures.
_BUSY = 0.05


class Reporter(Protocol):
    """Hears how a run goes on."""

    def say(self, text: str) -> None:
        """A line for the user."""
        ...

    def begin(self, total: int) -> None:
        """So many steps follow."""
        ...

    def step(self, description: str) -> None:
        """The next step begins."""
        ...

    def done(self) -> None:
        """All steps are done."""
        ...


def interleaved(sides: Sequence[T], repeats: int) -> Iterator[tuple[int, T]]:
    """Round by round, all sides in turns (A B A B), so that neighbours in time are compared."""
    for round_ in range(repeats):
        for side in sides:
            yield round_, side


def duration(seconds: float) -> str:
    """For people: `40 s`, `3 min`."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def busy_notes(answers: Iterable[dict[str, Any]]) -> list[str]:
    """A sentence if other processes used the machine during the calls of `SideProcess.call`."""
    # The kernel counts time in ticks, too coarse for a short measurement.
    load = max((answer["background_load"] for answer in answers if answer["seconds"] > 1), default=0.0)
    if load <= _BUSY:
        return []
    return [f"other processes used up to {load:.0%} of the cores during a measurement: the figures are disturbed"]
