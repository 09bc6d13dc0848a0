"""Drawn documents on their way through the stages of a run."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from headstart.training.data.errors import DataError
from headstart.training.data.mixture import Draw, Draws, Piece
from headstart.training.data.packing import as_array
from headstart.training.documents import Document
from headstart.training.seams import DataStage, DocumentContext


class Staged:
    """A stream of draws with every document replaced by what the stages make of it.

    Args:
        draws: a `Mixture`.
        stages: applied in this order; each sees what the one before it gave.
        context: (source, ordinal, number of the stage) → what the stage is told. Its random stream must follow from
            these three alone, for a resume to be exact.

    Attributes:
        draws: as given.
    """

    def __init__(
        self, draws: Draws, stages: Sequence[DataStage], context: Callable[[str, int, int], DocumentContext]
    ) -> None:
        self.draws = draws
        self._stages, self._context = list(stages), context
        # What the stages made of the last draw and was not yet taken.
        self._pending: deque[Draw] = deque()

    def __iter__(self) -> Iterator[Draw]:
        return self

    def __next__(self) -> Draw:
        while not self._pending:
            source, ordinal, document = next(self.draws)
            found = [document]
            for number, stage in enumerate(self._stages):
                context = self._context(source, ordinal, number)
                found = [after for before in found for after in stage(before, context)]
            self._pending.extend(Draw(source, ordinal, each) for each in found)
        return self._pending.popleft()

    def state_dict(self) -> dict[str, Any]:
        """The draws' cursor, the stages' states, and documents not yet taken."""
        return {
            "draws": self.draws.state_dict(),
            "stages": [stage.state_dict() for stage in self._stages],
            "pending": [_draw_state(draw) for draw in self._pending],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called.

        Raises:
            DataError: the state is of another number of stages, or of other draws.
        """
        if len(state["stages"]) != len(self._stages):
            raise DataError(
                f"the data cursor is of {len(state['stages'])} data stages, and the run has {len(self._stages)}; "
                "resume with the stages of the checkpoint"
            )
        self.draws.load_state_dict(state["draws"])
        for stage, saved in zip(self._stages, state["stages"], strict=True):
            stage.load_state_dict(saved)
        self._pending = deque(_draw_of(saved) for saved in state["pending"])


def _draw_state(draw: Draw) -> dict[str, Any]:
    document = draw.document
    state: dict[str, Any] = {"source": draw.source, "ordinal": draw.ordinal, "id": document.id}
    state |= {"token_ids": np.asarray(document.token_ids), "metadata": dict(document.metadata)}
    state["trained"] = None if document.trained is None else np.asarray(document.trained)
    if isinstance(document, Piece):
        state |= {"begins": document.begins, "ends": document.ends}
    return state


def _draw_of(state: dict[str, Any]) -> Draw:
    trained = None if state["trained"] is None else as_array(state["trained"])
    parts = (as_array(state["token_ids"]), trained, state["id"], state["metadata"])
    document = Piece(*parts, state["begins"], state["ends"]) if "begins" in state else Document(*parts)
    return Draw(state["source"], state["ordinal"], document)
