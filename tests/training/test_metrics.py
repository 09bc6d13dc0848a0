"""What a run leaves to look at."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from headstart.training.errors import TrainingError
from headstart.training.metrics import RunReport, plot_run, read_metrics
from tests.training import workbench


def step(number: int, **changes: Any) -> dict[str, Any]:
    record = {"step": number, "phase": "main", "tokens": 100 * number, "loss": 1.0 / number, "learning_rate": 0.1}
    return record | {"gradient_norm": 1.0, "seconds": 0.5, "flops": 1e9} | changes


def report(directory: Path, **options: Any) -> RunReport:
    directory.mkdir(exist_ok=True)
    return RunReport(directory, 20, **({"log_every": 3, "console": Console(quiet=True)} | options))


def test_lines_are_written_for_the_first_and_every_few_steps(tmp_path: Path) -> None:
    with report(tmp_path, peak_flops=1e10) as found:
        for number in range(1, 8):
            found.step(step(number))
        found.evaluation({"step": 7, "phase": "main", "tokens": 700, "books/bits_per_byte": 1.5})
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 3, 6, 7] and lines[-1]["evaluation"]
    # The first step, which compiles, is in no figure of speed.
    assert "tokens_per_second" not in lines[0] and "seconds" not in lines[1]
    assert lines[1]["tokens_per_second"] == 200 and lines[1]["mfu"] == pytest.approx(2e9 / 1e10)
    # Logged are the steps since the line before.
    assert lines[2]["tokens_per_second"] == 200


def test_a_resumed_report_drops_the_steps_that_are_made_again(tmp_path: Path) -> None:
    with report(tmp_path, log_every=1) as found:
        for number in range(1, 6):
            found.step(step(number))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6')
    with report(tmp_path, log_every=1, resumed_at=3) as found:
        found.step(step(4, loss=9.0))
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path / "metrics.jsonl")][2:] == [
        (3, 1 / 3),
        (4, 9.0),
    ]
    with report(tmp_path):
        assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_junk_in_the_file_is_said_when_it_must_be_continued(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("junk\n")
    with pytest.raises(TrainingError, match=r"metrics.jsonl cannot be continued.*move it away"):
        report(tmp_path, resumed_at=1)
    report(tmp_path)


def test_what_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with report(tmp_path) as found:
        (tmp_path / "metrics.jsonl").unlink()
        (tmp_path / "metrics.jsonl").mkdir()
        with pytest.raises(TrainingError, match=r"metrics.jsonl cannot be written: Is a directory"):
            found.step(step(1))


def test_the_bar_shows_loss_speed_and_share_of_the_peak(tmp_path: Path) -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=150, force_terminal=True, color_system=None)
    with report(tmp_path, console=console, peak_flops=4e9) as found:
        for number in (1, 2):
            found.step(step(number))
        found.evaluation({"step": 2, "phase": "main", "tokens": 200, "books/bits_per_byte": 1.5})
    assert "loss 0.5000 · 200 tokens/s · MFU 50%" in shown.getvalue()
    assert "step 2: books/bits_per_byte 1.5000" in shown.getvalue()


@pytest.mark.usefixtures("pictures")
def test_a_run_leaves_a_picture_a_recipe_and_tensorboard_when_asked(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    board = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    base = workbench.make_corpus(tmp_path)
    content = workbench.recipe(workbench.phase(steps=3, eval={"sources": {"v": "held-out"}}, **workbench.FIRST))
    out = tmp_path / "run"
    from headstart.training.run import RunOptions, train

    train(workbench.write(base, content), RunOptions(out, base, "cpu", tensorboard=True, console=Console(quiet=True)))
    assert (out / "metrics.png").read_bytes().startswith(b"\x89PNG")
    events = board.EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert len(events.Scalars("v/bits_per_byte")) == 1
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert events.Scalars("loss")[0].value == pytest.approx(first["loss"])


def test_there_is_no_picture_of_nothing(tmp_path: Path) -> None:
    assert plot_run(tmp_path) is None
