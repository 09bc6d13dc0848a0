"""From what a user calls a model to a directory on this machine."""

import os
from pathlib import Path

from headstart.checkpoints.default import embedded_checkpoints
from headstart.errors import CheckpointError

# Only what is read: no weights in other formats, and none of the originals that some repositories keep beside
# the converted ones, which are safetensors too. In these patterns `*` crosses slashes.
_PATTERNS = ["*.json", "*.safetensors", "*.jinja"]
_IGNORED_PATTERNS = ["consolidated*", "original/*"]


def resolve(name_or_path: str | Path) -> Path:
    """The directory of a checkpoint: itself, one that comes with the package, or the local copy of an id on the
    Hugging Face hub.

    Args:
        name_or_path: a directory, a name of `embedded_checkpoints`, or an id such as `Qwen/Qwen2.5-0.5B-Instruct`,
            which is downloaded unless it is cached.

    Raises:
        CheckpointError: there is no such directory or id, it needs permission, or the hub cannot be reached.
    """
    # These functions take any string, where the methods of `Path` raise on unknown users and overlong names.
    path = os.path.expanduser(name_or_path)
    if os.path.isdir(path):
        return Path(path)
    if os.path.isfile(path):
        raise CheckpointError(f"{path} is a file; give the checkpoint directory that holds it")
    name = str(name_or_path)
    embedded = embedded_checkpoints()
    if name in embedded:
        return embedded[name]
    if isinstance(name_or_path, Path) or name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise CheckpointError(f"there is no directory {name!r}, and it is no hub id, which looks like 'owner/name'")
    return _download(name)


def _download(name: str) -> Path:
    # Imported here because it takes longer than the rest of the package, and local directories do without it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(name, allow_patterns=_PATTERNS, ignore_patterns=_IGNORED_PATTERNS))
    except HFValidationError:
        raise CheckpointError(f"{name!r} is neither a directory nor a valid hub id") from None
    except GatedRepoError:
        raise CheckpointError(
            f"{name!r} is gated on the hub; accept its terms on its page and log in with 'hf auth login'"
        ) from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{name!r} is neither a directory nor a model on the hub that this account may see; check the spelling"
        ) from None
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"{name!r} is not in the local cache and the hub cannot be reached; give a local directory"
        ) from None
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{name!r} could not be downloaded from the hub: {reason}") from None
