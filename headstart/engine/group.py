"""What an engine shares with those that hold the other parts of its model: every rank runs an engine of its own, which
is told the same in the same order and so plans the same steps. Rank 0 alone decides what a clock or a draw decides."""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from headstart.engine.batch import Allotment
from headstart.errors import HeadstartError
from headstart.models.parallel import ALONE, Ranks

T = TypeVar("T")


class RanksError(HeadstartError):
    """The ranks of a model no longer work together: one has died, failed, or planned something else."""


class Group:
    """The group of a rank: here of one that is alone, whose calls do nothing.

    Attributes:
        ranks: their number, and the collectives over them.
    """

    ranks: Ranks = ALONE

    def tell(self, command: str, *arguments: Any) -> None:
        """Rank 0's: let the other engines do this too. Without effect once the group has ended."""

    def agree(self, value: T) -> T:
        """Rank 0's value, on every rank; all must ask."""
        return value

    @contextmanager
    def together(self, command: str | None = None) -> Iterator[None]:
        """Work that all do, the others once they are told; an error in it ends the group.

        Raises:
            RanksError: it has ended before, or another rank is the cause of the error.
        """
        yield

    def confirm(self, step: Sequence[Allotment]) -> None:
        """Make sure that every rank has planned the same step.

        Raises:
            RanksError: this one has not.
        """
        if self.ranks.size > 1:
            own = _digest(step)
            if self.agree(own) != own:
                raise RanksError(f"rank {self.ranks.rank} has planned another step than rank 0")

    def close(self) -> None:
        """End the other engines."""


def _digest(step: Sequence[Allotment]) -> int:
    """A number that stands for who computes what in a step."""
    return zlib.crc32(
        repr(
            [
                (a.sequence.request.request_id, a.sequence.index, a.sequence.num_computed, a.num_tokens, a.guesses)
                for a in step
            ]
        ).encode()
    )
