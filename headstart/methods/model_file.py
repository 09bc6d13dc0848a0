"""Files that `headstart calibrate` writes: what a method has found out about one model."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.errors import MethodError
from headstart.models.config import ModelConfig

# What tells models apart for which such a file cannot be the same.
_FIELDS = ("num_layers", "num_heads", "num_kv_heads", "head_dim")


@dataclass(frozen=True)
class ModelFile:
    """A kind of file.

    Attributes:
        method: the key of the method that makes and reads it.
        what: it holds, in the plural: `"budgets"`.
    """

    method: str
    what: str

    @property
    def _format(self) -> str:
        return f"headstart {self.method} 1"

    def content(self, config: ModelConfig, **found: Any) -> dict[str, Any]:
        """What is written: `found`, and of which model."""
        return {"format": self._format, "model": _fields(config), **found}

    def read(self, path: Path, config: ModelConfig) -> dict[str, Any]:
        """What a file holds, as it was given to `content`.

        Raises:
            MethodError: the file cannot be read, is of another kind, or of another model.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no JSON"
            raise self._refused(path, f"the file of {self.what} {path} cannot be read ({reason})") from None
        if not isinstance(content, dict) or content.get("format") != self._format:
            raise self._refused(path, f"{path} is no file of {self.what}")
        model: Any = content.get("model")
        for name, own in _fields(config).items():
            other = model.get(name) if isinstance(model, dict) else None
            if other != own:
                which = f"its {name} is {other}, and this model's is {own}"
                raise self._refused(path, f"{path} is of another model: {which}")
        return content

    def damaged(self, path: Path) -> MethodError:
        """For a file whose content has not the shape that it should have."""
        return self._refused(path, f"the {self.what} of {path} are damaged")

    def _refused(self, path: Path, why: str) -> MethodError:
        return MethodError(f"{self.method}: {why}; `headstart calibrate {self.method} MODEL {path}` makes it")


def _fields(config: ModelConfig) -> dict[str, int]:
    return {name: getattr(config, name) for name in _FIELDS}
