"""Which code a measurement ran: digests of the source files of methods, and whether they are still the same."""

import hashlib
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path

import headstart

_ROOT = Path(headstart.__file__).resolve().parent.parent
_METHODS = _ROOT / "headstart" / "methods"


def source_digests(methods: Iterable[type]) -> dict[str, str]:
    """Digests of the files that say what methods do, by path from the package's parent (absolute outside of it).

    A method in a folder of its own brings the whole folder; files of base classes count, the seams do not.
    """
    files: set[Path] = set()
    for method in methods:
        for cls in method.__mro__:
            packages = cls.__module__.split(".")
            if packages[0] not in sys.stdlib_module_names and "seams" not in packages:
                files |= _files_of(cls)
    names = {str(path.relative_to(_ROOT) if path.is_relative_to(_ROOT) else path) for path in files}
    return {name: digest for name in sorted(names) if (digest := file_digest(name)) is not None}


def _files_of(cls: type) -> set[Path]:
    """The file of a class, or all of the folder that a method has to itself (`methods/STAGE/METHOD/`)."""
    try:
        path = Path(inspect.getfile(cls)).resolve()
    except (TypeError, OSError):
        return set()
    parts = path.relative_to(_METHODS).parts if path.is_relative_to(_METHODS) else ()
    return set((_METHODS / parts[0] / parts[1]).rglob("*.py")) if len(parts) > 2 else {path}


def file_digest(path: str) -> str | None:
    """Of the bytes of a file that `source_digests` has named; None where there is none."""
    try:
        return hashlib.sha256((_ROOT / path).read_bytes()).hexdigest()[:16]
    except OSError:
        return None
