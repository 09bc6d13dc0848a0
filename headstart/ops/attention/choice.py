"""Which kernel computes prefill chunks: measured once per kind of chunk and machine, and remembered."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch

from headstart.errors import HeadstartError

VARIABLE = "HEADSTART_ATTENTION"
"""The environment variable that names the path to take, whatever was measured."""
PATHS = ("triton", "cudnn", "flash", "plain")
# What is measured stands for longer chunks too: rates hardly change any more.
_MOST_ROWS, _MOST_KEYS = 8192, 32768


@dataclass(frozen=True)
class Kind:
    """What the speed of a chunk depends on; lengths are rounded up to powers of two."""

    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    rows: int
    keys: int

    @classmethod
    def of(cls, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, rows: int, keys: int) -> "Kind":
        """The kind of a chunk of so many query rows with so many keys, its own included."""
        rows = min(_power(rows), _MOST_ROWS)
        return cls(heads, kv_heads, head_dim, str(dtype), rows, max(min(_power(keys), _MOST_KEYS), rows))


def _power(n: int) -> int:
    return 1 << (max(n, 1) - 1).bit_length()


def forced() -> str | None:
    """The path that the environment asks for.

    Raises:
        HeadstartError: there is no such path.
    """
    path = os.environ.get(VARIABLE) or None
    if path is not None and path not in PATHS:
        raise HeadstartError(f"{VARIABLE} must be one of {', '.join(PATHS)}, not {path}")
    return path


class Choices:
    """Seconds that each path took for each kind of chunk, kept in a file.

    Args:
        file: where; what cannot be read or written is measured anew.
        machine: the name under which this machine's figures stand in it.
    """

    def __init__(self, file: Path, machine: str) -> None:
        self.file, self.machine = file, machine
        self._taken: dict[str, dict[str, float]] = {}
        with suppress(OSError, ValueError, AttributeError):
            self._taken = json.loads(file.read_text()).get(machine, {})

    def best(self, kind: Kind, measure: Callable[[Kind], dict[str, float]]) -> str:
        """The fastest path, by `measure`'s seconds where nothing is remembered."""
        key = json.dumps(asdict(kind))
        if key not in self._taken:
            self._taken[key] = measure(kind)
            self._write()
        return min(self._taken[key], key=self._taken[key].__getitem__)

    def _write(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            known = json.loads(self.file.read_text()) if self.file.exists() else {}
            known[self.machine] = known.get(self.machine, {}) | self._taken
            self.file.parent.mkdir(parents=True, exist_ok=True)
            new = self.file.with_name(f"{self.file.name}.{os.getpid()}")
            new.write_text(json.dumps(known, indent=1))
            new.replace(self.file)


@lru_cache
def choices_of(device: torch.device) -> Choices:
    """The remembered choices for a GPU, under the user's cache directory."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Choices(
        cache / "headstart" / "attention.json", f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    )
