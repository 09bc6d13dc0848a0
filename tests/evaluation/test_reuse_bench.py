"""The bench of reuse: sides take turns over the same questions, and what is complete is kept."""

from typing import Any

from headstart import LLM
from headstart.evaluation.compare_lengths import Contender
from headstart.evaluation.compare_subject import Subject
from headstart.evaluation.reuse_bench import PREFIX_CACHE, QUICK, ReuseRun
from headstart.evaluation.shelf import Shelf, share_found
from headstart.evaluation.sides import SideSettings

LABELS = ("exact", PREFIX_CACHE, "plain", "method")


class Side:
    """A side that answers at once; the method is three times as fast, and finds half."""

    def __init__(self, settings: SideSettings) -> None:
        self.versions = {"headstart": "0"}
        self.used = settings.engine_options["use"]

    def call(self, name: str, *arguments: Any) -> dict[str, Any]:
        fast = self.used == ["method"]
        result = {"ttft": [0.1 if fast else 0.3] * 2, "found": [50.0 if fast else 100.0] * 2, "answered": True}
        return {"result": result | {"prompt": 100.0, "counts": {}}, "seconds": 0.1, "background_load": 0.0}

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *error: Any) -> None:
        return None


class Silent:
    def say(self, text: str) -> None: ...
    def begin(self, total: int) -> None: ...
    def step(self, description: str) -> None: ...
    def done(self) -> None: ...


def test_rows_and_ratios_say_cost_and_quality_together() -> None:
    contenders = [Contender(label, use=() if at < 2 else (label,)) for at, label in enumerate(LABELS)]
    found = ReuseRun(Subject.of_model(None), contenders, QUICK, 3, 0, 1, Silent(), Side).run()
    assert {(row.side, row.unit) for row in found.rows} == {
        (label, unit) for label in LABELS for unit in ("s", "percent")
    }
    first = found.ratios[0]
    assert (first.side, first.against, first.target) == ("method", "exact", 2.2)
    assert abs(first.value - 3) < 1e-9
    assert found.partial is None


def test_a_shelf_is_the_same_for_all_and_its_questions_have_their_answers() -> None:
    llm = LLM(dtype="float32", num_pages=10)
    one, other = Shelf.of(llm, 6, 32, seed=1), Shelf.of(llm, 6, 32, seed=1)
    assert one.documents == other.documents
    for index in range(8):
        asked = one.ask(index, 3, seed=1)
        assert asked == other.ask(index, 3, seed=1)
        prompt = one.prompt(asked)
        text = llm.tokenizer.decode(prompt["prompt_token_ids"])
        assert len(asked.answers) == 2 and all(answer in text for answer in asked.answers)
        assert [prompt["prompt_token_ids"][a:b] for a, b in prompt["chunks"]] == [one.documents[d] for d in asked.order]
        assert share_found(asked, asked.answers[0]) == 50.0
