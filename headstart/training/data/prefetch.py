"""Rows made ahead of time on a thread, with the state of what was consumed rather than of what was made."""

import threading
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made", covariant=True)


class Resumable(Protocol[Made]):
    """An iterator that goes on where it was after `load_state_dict`."""

    def __next__(self) -> Made: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Prefetch(Generic[Item]):
    """Items of an iterator, made on a thread up to `depth` ahead. Errors there are raised where the item was due.

    The state is taken after every item, so items should be large: batches rather than rows.

    Args:
        iterator: used by the thread alone from the first item on.
        depth: items made ahead.
    """

    def __init__(self, iterator: Resumable[Item], depth: int = 2) -> None:
        self._iterator, self._depth = iterator, depth
        self._thread: threading.Thread | None = None
        self._state: dict[str, Any] = {}

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._thread is None:
            self._start()
        self._ready.acquire()
        item, state, error = self._items[0]
        if error is not None:
            # It stays, so that asking again gives the same answer.
            self._ready.release()
            raise error
        self._items.popleft()
        self._room.release()
        self._state = state
        return item

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def state_dict(self) -> dict[str, Any]:
        """The iterator's state right after the last item that was taken."""
        return self._iterator.state_dict() if self._thread is None else self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called; items made ahead are thrown away."""
        self.close()
        self._iterator.load_state_dict(state)

    def close(self) -> None:
        """End the thread and throw away what it made ahead. The iterator is then where the thread left it."""
        if self._thread is not None:
            self._stopped = True
            self._room.release()
            self._thread.join()
            self._thread = None

    def _start(self) -> None:
        self._items: deque[tuple[Any, dict[str, Any], BaseException | None]] = deque()
        self._ready, self._room = threading.Semaphore(0), threading.Semaphore(self._depth)
        self._stopped = False
        self._state = self._iterator.state_dict()
        self._thread = threading.Thread(target=self._make, name="prefetch", daemon=True)
        self._thread.start()

    def _make(self) -> None:
        while True:
            self._room.acquire()
            if self._stopped:
                return
            try:
                item = next(self._iterator)
                made = (item, self._iterator.state_dict(), None)
            except BaseException as error:
                made = (None, {}, error)
            self._items.append(made)
            self._ready.release()
            if made[2] is not None:
                return
