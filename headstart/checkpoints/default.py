"""Where the checkpoint lies that comes with the package."""

from pathlib import Path


def default_checkpoint_path() -> Path:
    """The directory of the embedded checkpoint."""
    return Path(__file__).parent / "default"
