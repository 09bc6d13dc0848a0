"""Stages of a run: what they give is read instead, and a resume between their documents is exact."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import pytest

from headstart.training.data.errors import DataError
from headstart.training.data.mixture import Draw, Mixture, SourceSpec
from headstart.training.data.staged import Staged
from headstart.training.documents import Document
from headstart.training.random_streams import numpy_stream
from headstart.training.seams import DataStage, DocumentContext


class Copies(DataStage):
    """None to two noisy copies of a document, numbered over the whole run."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, document: Document, context: DocumentContext) -> Iterable[Document]:
        for _ in range(int(context.rng.integers(0, 3))):
            self.made += 1
            noise = context.rng.integers(0, 9, len(document)).astype(np.int32)
            yield Document(noise, noise % 2 == 0, f"{document.id}/{self.made}", document.metadata)

    def state_dict(self) -> dict[str, Any]:
        return {"made": self.made}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.made = state["made"]


def build(stages: int = 2) -> Staged:
    found = [Document(np.arange(i + 1, dtype=np.int32), None, f"d{i}", {"n": i}) for i in range(7)]
    mixture = Mixture({"a": SourceSpec(found, 1.0), "b": SourceSpec(found, 2.0, piece_tokens=3)}, 0)
    return Staged(
        mixture,
        [Copies() for _ in range(stages)],
        lambda source, ordinal, number: DocumentContext(
            source, ordinal, lambda text: [], numpy_stream(0, "stage", number, ordinal)
        ),
    )


def flat(draws: Iterable[Draw]) -> list[Any]:
    return [
        (
            d.source,
            d.ordinal,
            d.document.id,
            d.document.token_ids.tolist(),
            d.document.trained is None,
            d.document.metadata,
        )
        for d in draws
    ]


@pytest.mark.parametrize("stop", range(12))
def test_resume_between_documents_of_one_draw(stop: int) -> None:
    straight = build()
    list(islice(straight, stop))
    state = straight.state_dict()
    resumed = build()
    resumed.load_state_dict(state)
    assert flat(islice(straight, 30)) == flat(islice(resumed, 30))


def test_without_stages_the_draws_pass_through() -> None:
    plain = build(0)
    assert flat(islice(plain, 20)) == flat(islice(build(0).draws, 20))


def test_a_cursor_of_other_stages_is_refused() -> None:
    with pytest.raises(DataError, match="2 data stages, and the run has 1"):
        build(1).load_state_dict(build(2).state_dict())
