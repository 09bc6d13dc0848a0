"""`headstart calibrate`, as users type it, on the built-in model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from headstart.methods.prefill.minference.patterns import KINDS


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"On day {day} the keeper of the light counted {day * 7} ships." for day in range(60)))
    return path


def test_a_pattern_file_is_written(headstart: Callable, tmp_path: Path, text: Path) -> None:
    out = tmp_path / "patterns.json"
    ran = headstart("calibrate", "minference", "default", str(out), "--text", str(text), "--length", "260")
    assert ran.code == 0, ran.err
    content = json.loads(out.read_text())
    assert content["text_tokens"] == 260
    kinds = {kind for heads in content["patterns"] for kind, _, _ in heads}
    assert kinds <= set(KINDS)
    assert [path.name for path in tmp_path.glob("patterns*")] == ["patterns.json"]
    again = headstart("calibrate", "minference", "default", str(out), "--text", str(text))
    assert again.code == 2 and "--overwrite" in again.err


@pytest.mark.parametrize(
    ("method", "more", "word"),
    [
        ("hip", (), "needs no calibration"),
        ("minference", ("--length", "99999"), "fewer than"),
        ("minference", ("--length", "100"), "too short"),
        ("minference", ("--text", "/nowhere"), "cannot be read"),
    ],
)
def test_bad_input_is_one_sentence_and_no_file(
    headstart: Callable, tmp_path: Path, text: Path, method: str, more: tuple[str, ...], word: str
) -> None:
    out = tmp_path / "out.json"
    ran = headstart("calibrate", method, "default", str(out), "--text", str(text), *more)
    assert ran.code == 2 and word in ran.err and "Traceback" not in ran.err
    assert not out.exists()
