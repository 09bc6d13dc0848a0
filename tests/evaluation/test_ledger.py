"""The ledger keeps what it is given and refuses what it did not write."""

import json
import statistics
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.evaluation import ledger
from headstart.evaluation.ledger import LedgerEntry, LedgerError, Ratio, Row
from headstart.evaluation.machine import Machine, MachinePeaks

seconds = st.floats(min_value=1e-6, max_value=1e6)


def _entry(**changes: Any) -> LedgerEntry:
    fast = Row.of("prefill 8", "headstart bfloat16", "s", [1.0, 2.0, 4.0], higher_is_better=False)
    slow = Row.of(
        "prefill 8", "transformers bfloat16", "s", [3.0, 3.0, 3.0], higher_is_better=False, details={"floor": 0.1}
    )
    fields: dict[str, Any] = {
        "kind": "engine",
        "key": "engine",
        "command": "headstart bench engine",
        "commit": "0" * 40,
        "dirty": True,
        "created": datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC),
        "machine": Machine(cpu="Some(R) CPU(TM) @ 2.0GHz", cores=2, memory=8 << 30, os="Linux 6"),
        "peaks": MachinePeaks(threads=2, matmul={"float32": 1e11}, copy_bandwidth=1e10, read_bandwidth=2e10),
        "versions": {"torch": "2"},
        "seeds": [0],
        "settings": {"lengths": [1, 2], "nested": {"a": None}},
        "rows": [fast, slow],
        "ratios": [Ratio.of(fast, slow, target=1.5)],
        "notes": ["a note"],
    }
    return LedgerEntry(**{**fields, **changes})


def test_round_trip(tmp_path: Path) -> None:
    entry = _entry()
    path = ledger.write(entry, tmp_path / "made" / "on the way")
    assert path.name == "engine-some-cpu-2.0ghz-2c-8g.json"
    assert ledger.read(path) == entry
    assert ledger.check(path.parent) == [entry]


def test_writing_again_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    ledger.write(_entry(), tmp_path)
    ledger.write(_entry(notes=["second"]), tmp_path)
    ledger.write(_entry(key="engine-other"), tmp_path)
    assert [e.notes for e in ledger.check(tmp_path) if e.key == "engine"] == [["second"]]
    assert len(list(tmp_path.iterdir())) == 2


@given(values=st.lists(seconds, min_size=1, max_size=7))
def test_row_takes_median_and_spread_from_its_values(values: list[float]) -> None:
    row = Row.of("n", "s", "s", values, higher_is_better=True)
    assert (row.median, row.spread) == (statistics.median(values), (min(values), max(values)))


@given(pairs=st.lists(st.tuples(seconds, seconds), min_size=1, max_size=5))
def test_ratio_above_one_is_better_in_either_direction(pairs: list[tuple[float, float]]) -> None:
    mine, theirs = zip(*pairs, strict=True)
    times = Ratio.of(
        Row.of("n", "a", "s", mine, higher_is_better=False), Row.of("n", "b", "s", theirs, higher_is_better=False)
    )
    speeds = Ratio.of(
        Row.of("n", "a", "tokens/s", mine, higher_is_better=True),
        Row.of("n", "b", "tokens/s", theirs, higher_is_better=True),
    )
    assert times.value == pytest.approx(statistics.median(theirs) / statistics.median(mine))
    assert times.value * speeds.value == pytest.approx(1)
    assert times.spread == (min(t / m for m, t in pairs), max(t / m for m, t in pairs))


def test_target_met() -> None:
    assert _entry().ratios[0].met is True
    assert _entry().ratios[0].model_copy(update={"target": 1.6}).met is False
    assert _entry().ratios[0].model_copy(update={"target": None}).met is None


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda e: e.update(schema_version=2), "schema_version"),
        (lambda e: e.update(kind="guess"), "kind"),
        (lambda e: e.update(key="No Such/Key"), "key"),
        (lambda e: e.update(extra=1), "extra"),
        (lambda e: e.pop("command"), "command"),
        (lambda e: e["rows"][0].update(median=9.0), "median"),
        (lambda e: e["rows"][0].update(spread=[0.0, 9.0]), "spread"),
        (lambda e: e["rows"][1].update(values=[]), "values"),
        (lambda e: e["ratios"][0].pop("against"), "against"),
    ],
)
def test_other_schemas_and_edited_figures_are_refused(tmp_path: Path, change: Any, word: str) -> None:
    path = ledger.write(_entry(), tmp_path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(LedgerError, match=word) as caught:
        ledger.check(tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_broken_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "engine-x.json"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=r"engine-x\.json"):
        ledger.read(path)
    with pytest.raises(LedgerError, match="absent"):
        ledger.read(tmp_path / "absent.json")


def test_misnamed_file_is_refused(tmp_path: Path) -> None:
    path = ledger.write(_entry(), tmp_path)
    path.rename(tmp_path / "engine-else.json")
    with pytest.raises(LedgerError, match="give it that name"):
        ledger.check(tmp_path)


def test_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="could not be written"):
        ledger.write(_entry(), tmp_path / "file")


@pytest.mark.parametrize("key", ["", "Upper", "a/b", "a b", "../up", ".hidden"])
def test_keys_that_cannot_name_a_file(key: str) -> None:
    with pytest.raises(LedgerError, match="ledger key"):
        ledger.check_key(key)


def test_default_directory_is_that_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert ledger.default_directory() == below / "benchmarks" / "ledger"
    subprocess.run(["git", "init", "-q", str(tmp_path / "a")], check=True)
    assert ledger.default_directory() == tmp_path / "a" / "benchmarks" / "ledger"


def test_committed_ledger_is_valid() -> None:
    ledger.check(Path(__file__).parents[2] / "benchmarks" / "ledger")
