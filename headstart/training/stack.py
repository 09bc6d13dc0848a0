"""The training methods in force in a phase: which object fills which slot."""

from collections.abc import Iterable
from typing import Any, TypeVar

from headstart.errors import MethodError
from headstart.training.seams import TrainingSeam

S = TypeVar("S", bound=TrainingSeam)


class TrainingStack:
    """Methods by slot.

    Args:
        use: methods, or their descriptions as `--use` takes them (`"meco:field=source"`).

    Raises:
        MethodError: an unknown method or option, one of the engine's methods, or two in a slot that holds one.
    """

    def __init__(self, use: Iterable[Any] = ()) -> None:
        from headstart.methods import registry

        self.methods = [registry.build(item, "training") if isinstance(item, str) else item for item in use]
        filled: dict[str, str] = {}
        for item in self.methods:
            if not isinstance(item, TrainingSeam):
                raise MethodError(
                    f"{registry.describe(item) if hasattr(item, 'card') else repr(item)} is no training method: "
                    "give it to headstart serve or generate"
                )
            if item.repeatable:
                continue
            key = item.card.key  # type: ignore[attr-defined]
            for slot in item.slots:
                if slot in filled:
                    raise MethodError(f"{filled[slot]} and {key} both fill the {slot} slot: use one of them")
                filled[slot] = key

    def of(self, seam: type[S]) -> list[S]:
        """The methods that are this seam, in order."""
        return [item for item in self.methods if isinstance(item, seam)]

    def one(self, seam: type[S]) -> S | None:
        """The method that fills the seam's slot; None where the default stands."""
        found = self.of(seam)
        return found[0] if found else None
