"""Runs of `headstart eval`'s tasks: scores, groups, skipped tasks, and going on after a cut."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from headstart import LLM
from headstart.errors import HeadstartError
from headstart.evaluation import quality
from headstart.evaluation.quality import Run, report
from headstart.evaluation.quality_pictures import draw_pictures, heat_map
from headstart.evaluation.quality_prompts import Prompts, seconds_ahead
from headstart.evaluation.quality_report import Score, failure, mean_score
from headstart.evaluation.quality_results import Record, ResultFile, settings_hash
from headstart.evaluation.quality_settings import BITS, LOGITS, QualitySettings
from headstart.evaluation.tasks import Example, Sources, task


class Listener:
    """Keeps what it hears; ends the run after so many pieces of work if told to."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.total = self.done = 0
        self._stop_after = stop_after

    def begin(self, total: int) -> None:
        self.total = total

    def step(self, description: str, done: int) -> None:
        self.done += done
        if self._stop_after is not None and self.done >= self._stop_after:
            raise KeyboardInterrupt

    def scored(self, score: Score) -> None:
        pass


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(max_num_seqs=8, device="cpu")


def settings(*tasks: str, **given: Any) -> QualitySettings:
    return QualitySettings(**({"tasks": tasks, "lengths": (700,), "count": 2} | given))


def run(llm: LLM, asked: QualitySettings, path: Path | None = None, stop_after: int | None = None) -> list[Score]:
    results = ResultFile(path, settings_hash(llm, asked.identity()))
    return list(Run(llm, asked, results, Listener(stop_after)).scores())


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> list[Example]:
    """Answers that are right for the first turn and for needles in the first half, wrong elsewhere."""
    asked: list[Example] = []

    def answer(llm: LLM, prompts: Prompts, examples: Sequence[Example]) -> list[str]:
        asked.extend(examples)
        right = [e.metadata.get("depth", 0) <= 50 and e.metadata.get("turn", 1) == 1 for e in examples]
        return [", ".join(e.answers) if good else "no" for e, good in zip(examples, right, strict=True)]

    monkeypatch.setattr(quality, "answer", answer)
    return asked


def test_scores_are_means_with_their_spread_and_groups(llm: LLM, oracle: list[Example]) -> None:
    depth, turns, tracking = run(llm, settings("niah_depth", "multi_turn", "vt", count=4))
    assert depth.count == 5
    assert depth.score == 60
    assert depth.error == pytest.approx((0.3**0.5 * 100) / 5**0.5)
    assert depth.groups["depth"] == {"0": 100, "20": 100, "50": 100, "80": 0, "100": 0}
    assert turns.count == 12
    assert turns.groups["turn"] == {"1": 100, "2": 0, "3": 0}
    assert tracking.score == 100
    assert tracking.values == {"exact": 100}


def test_turns_of_a_context_are_asked_one_after_another(llm: LLM, oracle: list[Example]) -> None:
    run(llm, settings("multi_turn", count=3))
    order = [example.metadata["turn"] for example in oracle]
    assert order == sorted(order)


def test_the_model_is_really_asked_and_a_stranger_to_the_task_scores_nothing(stories: str) -> None:
    asked = settings("niah_single_1", count=1, lengths=(300,))
    (score,) = run(LLM(stories), asked)
    assert (score.score, score.count, score.skipped) == (0, 1, None)


def test_prompts_go_through_the_chat_template_when_wanted(llm: LLM) -> None:
    plain, chat = Prompts(llm, chat=False), Prompts(llm, chat=True)
    (example, second, _) = task("multi_turn").examples(llm.tokenizer, 700, 1, 0)
    assert llm.tokenizer.decode(plain.ids(example)) == example.text
    said = llm.tokenizer.decode(chat.ids(second), skip_special_tokens=False)
    template = llm.tokenizer.apply_chat_template(second.messages)
    assert said == template + second.answer_prefix.strip()
    assert chat.overhead > 0
    for turn in task("multi_turn").examples(llm.tokenizer, 700 - 3 * chat.overhead, 2, 0):
        assert len(chat.ids(turn)) + turn.max_tokens <= 700


def test_what_cannot_run_is_skipped_with_its_reason(llm: LLM, oracle: list[Example]) -> None:
    short, data, fine = run(llm, settings("cwe", "qa_1", "niah_depth", lengths=(300,), count=3))
    assert short.score is None
    assert "needs at least" in (short.skipped or "")
    assert "HEADSTART_DATA" in (data.skipped or "")
    assert fine.score == 60


def test_a_length_beyond_the_model_is_refused(llm: LLM) -> None:
    with pytest.raises(HeadstartError, match=f"1000000 tokens is beyond the {llm.max_model_len}"):
        run(llm, settings("vt", lengths=(512, 1_000_000)))


@pytest.mark.parametrize(
    ("given", "wants"),
    [
        ({"count": 0}, "count must be at least 1"),
        ({"lengths": (1024, 0)}, "at least 16 tokens, not 0"),
        ({"lengths": ()}, "at least 16 tokens"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, Any], wants: str) -> None:
    with pytest.raises(HeadstartError, match=wants):
        settings("vt", **given)


def test_unknown_tasks_are_refused_before_anything_runs() -> None:
    with pytest.raises(HeadstartError, match="did you mean 'logits'"):
        settings("logit").check()


def test_a_run_that_was_cut_off_goes_on_where_it_stopped(llm: LLM, tmp_path: Path, oracle: list[Example]) -> None:
    asked = settings("niah_depth", "vt", "multi_turn", count=9, lengths=(500, 700))
    whole = run(llm, asked)
    everything = len(oracle)
    path = tmp_path / "out" / "results.jsonl"
    oracle.clear()
    with pytest.raises(KeyboardInterrupt):
        run(llm, asked, path, stop_after=12)
    begun = len(oracle)
    assert 0 < begun < everything
    # Killed while a line was being written.
    with path.open("a") as file:
        file.write('{"settings": "half a li')
    oracle.clear()
    assert run(llm, asked, path) == whole
    assert len(oracle) == everything - begun
    oracle.clear()
    assert run(llm, asked, path) == whole
    assert not oracle
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_run_may_grow(llm: LLM, tmp_path: Path, oracle: list[Example]) -> None:
    path = tmp_path / "results.jsonl"
    run(llm, settings("vt", count=2), path)
    oracle.clear()
    (score,) = run(llm, settings("vt", count=5), path)
    assert (len(oracle), score.count) == (3, 5)


def test_results_under_other_settings_are_left_alone(llm: LLM, tmp_path: Path, oracle: list[Example]) -> None:
    path = tmp_path / "results.jsonl"
    run(llm, settings("vt", seed=1), path)
    oracle.clear()
    run(llm, settings("vt", seed=2), path)
    assert len(oracle) == 2
    oracle.clear()
    run(llm, settings("vt", seed=1), path)
    assert not oracle
    assert len(path.read_text().splitlines()) == 4


def test_lines_that_are_no_results_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('[]\n{"settings": "a"}\nnonsense\n{"settings": "a", "task": "vt", "unknown": 1}\n')
    results = ResultFile(path, "a")
    assert results.find("vt", 0) == {}
    results.add(Record("vt", 0, 3, 50.0))
    assert ResultFile(path, "a").find("vt", 0)[3].score == 50
    assert ResultFile(path, "b").find("vt", 0) == {}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HeadstartError, match="cannot be read or continued"):
        ResultFile(tmp_path / "file" / "results.jsonl", "a")
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(HeadstartError, match="cannot be read or continued"):
        ResultFile(folder, "a")


def test_the_settings_hash_knows_model_seed_and_text(llm: LLM) -> None:
    plain = settings("vt")
    others = [settings("vt", seed=1), settings("vt", chat=True), settings("vt", sources=Sources(haystack="A text."))]
    hashes = {settings_hash(llm, asked.identity()) for asked in (plain, *others)}
    assert len(hashes) == 4
    assert settings_hash(llm, plain.identity()) == settings_hash(llm, settings("niah", count=9).identity())


def test_the_exact_stack_is_no_distance_from_itself(llm: LLM) -> None:
    """Also when the engine holds the prompt's keys already: the forced request does not use them."""
    (first,) = run(llm, settings(LOGITS, lengths=(200,)))
    (again,) = run(llm, settings(LOGITS, lengths=(200,)))
    for score in (first, again):
        assert score.score == 0
        assert score.values == {"top1": 100, "first_kl": 0, "first_top1": 100, "max_kl": 0}
        assert score.unit == "nats"


def test_a_report_holds_what_repeats_the_run(llm: LLM, tmp_path: Path, oracle: list[Example]) -> None:
    asked = settings("vt", sources=Sources(haystack="Some prose."))
    listening = Run(llm, asked, ResultFile(None, "x"), Listener())
    scores = list(listening.scores())
    made = report(listening, scores, command="headstart eval", seconds=1.234, complete=True)
    made.write(tmp_path / "deep" / "report.json")
    kept = json.loads((tmp_path / "deep" / "report.json").read_text())
    assert kept["scores"][0]["score"] == 100
    assert kept["settings"]["seed"] == 0
    assert kept["settings"]["sources"] == {"haystack": "Some prose."}
    assert kept["exact"] is True
    assert kept["complete"] is True
    assert {"torch", "tokenizers"} <= set(kept["versions"])
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["report.json"]


def test_a_report_that_cannot_be_written_is_named(llm: LLM, tmp_path: Path) -> None:
    made = report(
        Run(llm, settings("vt"), ResultFile(None, "x"), Listener()), [], command="", seconds=0, complete=False
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(HeadstartError, match="could not be written"):
        made.write(tmp_path / "file" / "report.json")


def test_failures_read_like_a_conversation() -> None:
    record = Record("vt", 512, 3, 0.0, groups={"turn": 2}, asked="Which?", expected="A, B", output="\n\nC  D\n")
    assert failure(record) == "vt at 512, example 3, turn 2\n  asked:    Which?\n  expected: A, B\n  got:      C D"


def test_one_example_has_no_standard_error() -> None:
    score = mean_score("vt", 512, [Record("vt", 512, 0, 40.0)], "share")
    assert (score.score, score.error) == (40, None)


def test_pictures_show_every_length_and_depth(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    grid = {"0": 100.0, "50": 40.0, "100": 0.0}
    needles = [Score(task="niah_depth", length=n, score=50, groups={"depth": grid}) for n in (512, 1024)]
    bits = Score(task=BITS, length=512, score=1.5, groups={"position": {"0-256": 2.0, "256-512": 1.0}})
    assert [path.name for path in draw_pictures([*needles, bits], tmp_path)] == ["needles.png", "bits-per-byte.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())
    table = heat_map(needles)
    assert [column.header for column in table.columns] == ["depth", "512", "1,024"]
    assert table.row_count == 3
    assert draw_pictures([], tmp_path / "none") == []


def test_the_estimate_grows_with_the_work(llm: LLM) -> None:
    assert seconds_ahead(llm, []) == 0
    assert 0 < seconds_ahead(llm, [(100, 10)]) < 1000 * seconds_ahead(llm, [(100_000, 10_000)] * 10)
    run_of = Run(llm, settings("vt", "blimp", LOGITS, count=2), ResultFile(None, "x"), Listener())
    assert len(run_of.work()) == 2 + 2 * 67 + 2
