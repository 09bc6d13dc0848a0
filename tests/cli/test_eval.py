"""`headstart eval`: tables for people, a report for programs, and sentences for what cannot be done."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headstart.cli.eval import evaluate
from headstart.cli.main import app

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADSTART_DATA", raising=False)


def test_the_command_is_registered() -> None:
    assert any(command.name == "eval" and command.callback is evaluate for command in app.registered_commands)


def test_a_quick_run_prints_a_table_and_a_picture_of_needles(headstart: Run) -> None:
    ran = headstart("eval", "--quick", "--lengths", "512")
    assert ran.code == 0
    for word in (
        "percent",
        "niah_depth",
        "vt",
        "bits per byte",
        "bits_per_byte",
        "by depth in the text",
        "100%",
        "512",
    ):
        assert word in ran.out


def test_the_report_and_pictures_are_kept_and_a_second_run_continues(headstart: Run, tmp_path: Path) -> None:
    out = tmp_path / "results"
    arguments = ("eval", "-t", "niah_depth,logits", "--lengths", "400", "--count", "2", "--out", str(out), "--json")
    first = headstart(*arguments)
    assert first.code == 0
    assert {"report.json", "results.jsonl"} <= {path.name for path in out.iterdir()}
    lines = (out / "results.jsonl").read_text()
    again = headstart(*arguments)
    assert again.json["scores"] == first.json["scores"] == json.loads((out / "report.json").read_text())["scores"]
    assert (out / "results.jsonl").read_text() == lines
    logits = next(score for score in first.json["scores"] if score["task"] == "logits")
    assert (logits["score"], logits["values"]["top1"]) == (0, 100)
    assert first.json["complete"] is True


def test_failures_are_shown_as_asked_expected_and_got(headstart: Run, stories: str) -> None:
    ran = headstart("eval", stories, "--task", "niah_single_2", "--lengths", "400", "--count", "1", "--failures", "2")
    assert "asked:    Which secret number" in ran.out
    assert ran.out.count("expected: ") == ran.out.count("got:      ") == 1


def test_methods_in_force_are_measured_and_named(headstart: Run) -> None:
    ran = headstart("eval", "-t", "logits", "--lengths", "300", "--count", "1", "--use", "sarathi-serve", "--json")
    (score,) = ran.json["scores"]
    assert ran.json["use"][0].startswith("sarathi-serve")
    assert score["score"] == pytest.approx(0, abs=1e-6)


def test_own_haystack_questions_and_text_are_used(headstart: Run, tmp_path: Path) -> None:
    haystack, questions = tmp_path / "hay.txt", tmp_path / "own.jsonl"
    haystack.write_text("The quiet zebra slept under the tree. Nobody saw it at all. " * 20)
    entry = {"documents": ["The zebra slept."], "question": "Who slept?", "answers": ["the zebra"]}
    questions.write_text(json.dumps(entry))
    ran = headstart(
        "eval", "-t", "qa,niah_single_2,bits_per_byte", "--lengths", "400", "--count", "1", "--json",
        "--haystack", str(haystack), "--questions", str(questions), "--text", str(haystack),
    )  # fmt: skip
    assert [score["skipped"] for score in ran.json["scores"]] == [None] * 3


def test_a_model_with_a_short_context_is_measured_at_its_longest(headstart: Run, stories: str) -> None:
    ran = headstart("eval", stories, "-t", "bits_per_byte,niah_depth", "--count", "1", "--json")
    assert {score["length"] for score in ran.json["scores"]} == {512}


def test_tasks_without_their_data_are_skipped_with_the_reason(headstart: Run) -> None:
    ran = headstart("eval", "-t", "blimp,qa_1,lm_eval:zzz", "--lengths", "512", "--count", "1")
    assert ran.code == 0
    assert "skipped blimp: BLiMP is not here" in ran.out
    assert "skipped qa_1 at 512: FairytaleQA is not here" in ran.out
    assert "--data or HEADSTART_DATA" in ran.out


@pytest.mark.parametrize(
    ("arguments", "wants"),
    [
        (("--task", "niah_singel_1"), "did you mean 'niah_single_1'?"),
        (("--task", "rulr"), "did you mean 'ruler'?"),
        (("--task", "qa"), "--questions"),
        (("--lengths", "4096,x"), "--lengths takes whole numbers"),
        (("--lengths", "1m"), "is beyond the"),
        (("--lengths", "4"), "at least 16 tokens, not 4"),
        (("--data", "/nowhere"), "/nowhere does not exist"),
        (("--haystack", "/nowhere"), "the haystack /nowhere cannot be read"),
        (("-t", "bits_per_byte", "--text", "/nowhere"), "/nowhere cannot be read"),
        (("one", "--model", "two"), "named twice"),
        (("--use", "sarathi-serv"), "did you mean 'sarathi-serve'?"),
        (("--questions", "/nowhere", "-t", "qa"), "/nowhere cannot be read"),
        (("--chat", "--model", "/nowhere"), "/nowhere"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(headstart: Run, arguments: tuple[str, ...], wants: str) -> None:
    ran = headstart("eval", *arguments)
    assert ran.code == 2
    assert wants in ran.err.replace("\n", " ")
    assert ran.err.startswith("headstart: ")
    assert "Traceback" not in ran.err
    assert ran.out == ""
