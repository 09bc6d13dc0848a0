"""Checked access to the fields of a config dict, with one sentence for each thing that can be wrong."""

from dataclasses import dataclass, field
from typing import Any

from headstart.errors import CheckpointError


@dataclass(frozen=True)
class Fields:
    """A config dict, where it came from, and what absent fields mean.

    Every reader raises `CheckpointError` naming the field and the source. A null counts as absent, and
    switches off a default.
    """

    raw: dict[str, Any]
    source: str
    defaults: dict[str, Any] = field(default_factory=dict)

    def integer(self, *names: str) -> int:
        """The first of these fields that is there, a whole number of at least one."""
        for name in names:
            value = self.optional_integer(name)
            if value:
                return value
        raise self._missing(names[0])

    def optional_integer(self, name: str) -> int | None:
        """A whole number of at least zero, or None when absent."""
        value = self._get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise CheckpointError(f"{name} in {self.source} must be a whole number, not {value!r}")
        return value

    def number(self, name: str) -> float:
        """A number."""
        value = self.optional_number(name)
        if value is None:
            raise self._missing(name)
        return value

    def optional_number(self, name: str) -> float | None:
        """A number, or None when absent."""
        value = self._get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"{name} in {self.source} must be a number, not {value!r}")
        return float(value)

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        """A list of this many numbers."""
        value = self._get(name)
        if value is None:
            raise self._missing(name)
        if not isinstance(value, list) or len(value) != length or not all(_is_number(item) for item in value):
            raise CheckpointError(f"{name} in {self.source} must be a list of {length} numbers")
        return tuple(float(item) for item in value)

    def boolean(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise CheckpointError(f"{name} in {self.source} must be true or false, not {value!r}")
        return value

    def switch(self, rule: bool | str) -> bool:
        """A fixed answer, or the field that holds it (absent: false)."""
        return self.boolean(rule, False) if isinstance(rule, str) else rule

    def _get(self, name: str) -> Any:
        value = self.raw.get(name)
        return self.defaults.get(name) if value is None and name not in self.raw else value

    def _missing(self, name: str) -> CheckpointError:
        return CheckpointError(f"{self.source} has no field {name!r}, which this architecture needs")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
