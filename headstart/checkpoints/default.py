"""Where the checkpoints lie that come with the package."""

from pathlib import Path

_HERE = Path(__file__).parent


def default_checkpoint_path() -> Path:
    """The directory of the embedded checkpoint."""
    return _HERE / "default"


def embedded_checkpoints() -> dict[str, Path]:
    """Every checkpoint of the package by its name: `default`, also called `headstart-base`, and what goes with it."""
    found = {path.parent.name: path.parent for path in sorted(_HERE.glob("*/config.json"))}
    return found | {"headstart-base": default_checkpoint_path()}
