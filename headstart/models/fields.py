"""Checked access to the fields of a config dict, with one sentence for each thing that can be wrong."""

from dataclasses import dataclass, field
from typing import Any

from headstart.errors import CheckpointError

# No size comes near these bounds, and within them nothing that is computed from a config overflows.
_MOST_INTEGER = 2**31 - 1
_LONGEST_SHOWN = 80
_LEAST_NUMBER, _MOST_NUMBER = 1e-30, 1e30


@dataclass(frozen=True)
class Fields:
    """A config dict, where it came from, and what absent fields mean.

    Every reader raises `CheckpointError` naming the field and the source. A null counts as absent, and
    switches off a default.
    """

    raw: dict[str, Any]
    source: str
    defaults: dict[str, Any] = field(default_factory=dict)

    def integer(self, *names: str, most: int = _MOST_INTEGER) -> int:
        """The first of these fields that is there, a whole number from one to `most`."""
        for name in names:
            value = self.optional_integer(name, most=most)
            if value is not None:
                return value
        raise self._missing(names[0])

    def optional_integer(self, name: str, *, least: int = 1, most: int = _MOST_INTEGER) -> int | None:
        """A whole number from `least` to `most`, or None when absent."""
        value = self._get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.bad(name, "a whole number", value)
        if not least <= value <= most:
            raise self.bad(name, f"a whole number from {least} to {most}", value)
        return value

    def number(self, name: str) -> float:
        """A number above zero."""
        value = self.optional_number(name)
        if value is None:
            raise self._missing(name)
        return value

    def optional_number(self, name: str, *, zero: bool = False) -> float | None:
        """A number above zero, or zero too where that is allowed, or None when absent."""
        value = self._get(name)
        if value is None:
            return None
        if not _is_number(value):
            raise self.bad(name, "a number", value)
        if not (_LEAST_NUMBER <= value <= _MOST_NUMBER or (zero and value == 0)):
            bounds = f"{_LEAST_NUMBER} to {_MOST_NUMBER}"
            raise self.bad(name, f"zero or a number from {bounds}" if zero else f"a number from {bounds}", value)
        return float(value)

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        """A list of this many numbers above zero."""
        value = self._get(name)
        if value is None:
            raise self._missing(name)
        if (
            not isinstance(value, list)
            or len(value) != length
            or not all(_is_number(item) and _LEAST_NUMBER <= item <= _MOST_NUMBER for item in value)
        ):
            raise CheckpointError(f"{name} in {self.source} must be a list of {length} numbers above zero")
        return tuple(float(item) for item in value)

    def text(self, *names: str) -> str | None:
        """The first of these fields that is there, a string; None when all are absent."""
        for name in names:
            value = self._get(name)
            if value is not None:
                if not isinstance(value, str):
                    raise self.bad(name, "a string", value)
                return value
        return None

    def boolean(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.bad(name, "true or false", value)
        return value

    def switch(self, rule: bool | str) -> bool:
        """A fixed answer, or the field that holds it (absent: false)."""
        return self.boolean(rule, False) if isinstance(rule, str) else rule

    def bad(self, name: str, wanted: str, value: Any) -> CheckpointError:
        """What to raise when a field holds something else than what is wanted."""
        return CheckpointError(f"{name} in {self.source} must be {wanted}, not {shown(value)}")

    def _get(self, name: str) -> Any:
        value = self.raw.get(name)
        return self.defaults.get(name) if value is None and name not in self.raw else value

    def _missing(self, name: str) -> CheckpointError:
        return CheckpointError(f"{self.source} has no field {name!r}, which this architecture needs")


def shown(value: Any) -> str:
    """A value in a sentence, cut if it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
