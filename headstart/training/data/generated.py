"""Documents that code makes, over all cores, in the order of their index."""

import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

from headstart.errors import HeadstartError
from headstart.training.data.errors import DataError
from headstart.training.data.settings import GenerateSettings, resolve
from headstart.training.documents import TextDocument

_CHUNK = 16
_AHEAD = 3
"""Chunks in progress or waiting, for each process: what is made must not pile up."""


def generate_documents(settings: GenerateSettings, root: Path, processes: int | None = None) -> Iterator[TextDocument]:
    """The documents of a source that code makes. The number of processes does not change them.

    Args:
        settings: the function and its arguments.
        root: what `{root}` in an argument stands for.
        processes: None is one for each core that this process may use.

    Raises:
        DataError: the function cannot be found or fails; the sentence names the index.
        HeadstartError: what the function says itself.
    """
    # It brings PyTorch along, which the children of this process need not load.
    from headstart.evaluation.machine import usable_cores

    resolve(settings.call)
    processes = processes or usable_cores()
    options = _filled(settings.options, root)
    make = partial(_make, settings.call, settings.seed, options)
    chunks = [range(start, min(start + _CHUNK, settings.count)) for start in range(0, settings.count, _CHUNK)]
    if processes == 1:
        for chunk in chunks:
            yield from make(chunk)
        return
    # Not forked: the tokenizer's threads would not survive in the children.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(processes, len(chunks)), mp_context=context)
    try:
        waiting: deque[Future[list[TextDocument]]] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(make, chunk))
            if len(waiting) >= _AHEAD * processes:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool:
        raise DataError(f"a process of {settings.call} ended by itself, perhaps for want of memory") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _make(call: str, seed: int, options: dict[str, Any], indices: range) -> list[TextDocument]:
    function = resolve(call)
    return [_made(function, call, index, seed, options) for index in indices]


def _made(function: Any, call: str, index: int, seed: int, options: dict[str, Any]) -> TextDocument:
    try:
        document = function(index, seed, **options)
    except HeadstartError:
        raise
    except Exception as error:
        raise DataError(f"{call} fails at index {index}: {type(error).__name__}: {error}") from error
    if not isinstance(document, TextDocument):
        raise DataError(f"{call} gives a {type(document).__name__} at index {index} instead of a TextDocument")
    return document


def _filled(value: Any, root: Path) -> Any:
    """`{root}` replaced in all strings."""
    if isinstance(value, str):
        return value.replace("{root}", str(root))
    if isinstance(value, dict):
        return {key: _filled(each, root) for key, each in value.items()}
    return [_filled(each, root) for each in value] if isinstance(value, list) else value
