"""The ledger keeps what it is given and refuses what it did not write."""

import json
import shutil
import statistics
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.evaluation import ledger, ledger_sources
from headstart.evaluation.ledger import Crossover, LedgerEntry, LedgerError, Ratio, Row
from headstart.evaluation.ledger_sources import source_digests
from headstart.evaluation.machine import Machine, MachinePeaks
from headstart.methods import registry

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
        "crossovers": [Crossover.of("TTFT", "a", "b", {16: "better", 8: "same"})],
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
        (lambda e: e["crossovers"][0].update(length=8), "crossover"),
        (lambda e: e["crossovers"][0].update(monotone=False), "crossover"),
        (lambda e: e["crossovers"][0].update(lengths=[16, 8]), "crossover"),
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


def test_every_kind_of_entry_keeps_all_repeats(tmp_path: Path) -> None:
    row = Row.of("TTFT at 64", "minference", "s", [3.0, 1.0, 2.0], higher_is_better=False, metric="TTFT", length=64)
    for kind in ("engine", "method", "compare", "serve", "quality", "training"):
        entry = _entry(kind=kind, key=kind, method="minference", model="m", seeds=[0, 1, 2], rows=[row], ratios=[])
        assert ledger.read(ledger.write(entry, tmp_path)) == entry
    assert {entry.kind for entry in ledger.check(tmp_path)} >= {"method", "training"}
    assert ledger.check(tmp_path)[0].rows[0].values == [3.0, 1.0, 2.0]


def test_figures_that_json_cannot_hold_are_refused() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            Row.of("n", "s", "s", [value], higher_is_better=True)


def test_a_partial_run_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cut short"):
        ledger.write(_entry(partial="interrupted by Ctrl-C"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ['{"schema_version": 2, "rows": []}', "[]", "not json"])
def test_a_file_of_another_schema_is_never_written_over(tmp_path: Path, content: str) -> None:
    path = tmp_path / _entry().file_name
    path.write_text(content)
    with pytest.raises(LedgerError, match="not written over"):
        ledger.write(_entry(), tmp_path)
    assert path.read_text() == content and len(list(tmp_path.iterdir())) == 1


def test_scan_reads_what_it_can_and_names_the_rest(tmp_path: Path) -> None:
    ledger.write(_entry(), tmp_path)
    (tmp_path / "a.json").write_text('{"schema_version": 7}')
    (tmp_path / "b.json").write_text("{")
    entries, refused = ledger.scan(tmp_path)
    assert entries == [_entry()]
    assert [name for error in refused for name in ("a.json", "b.json") if name in str(error)] == ["a.json", "b.json"]
    with pytest.raises(LedgerError, match="no ledger directory"):
        ledger.scan(tmp_path / "absent")


def test_an_entry_is_stale_when_its_methods_files_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = registry.usable("distserve").implementation
    assert method is not None
    entry = _entry(kind="method", key="distserve", method="distserve", sources=source_digests([method]))
    # What it does stands in its base class too, and nothing in the seams.
    own, base = "headstart/methods/schedule/distserve.py", "headstart/engine/scheduler.py"
    assert set(entry.sources) == {own, base}
    assert entry.stale == []
    assert _entry().stale == []
    for path in entry.sources:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(ledger.headstart.__file__).parent.parent / path, tmp_path / path)
    monkeypatch.setattr(ledger_sources, "_ROOT", tmp_path)
    assert entry.stale == []
    (tmp_path / own).write_text((tmp_path / own).read_text() + "\n# doctored\n")
    assert entry.stale == [own]
    (tmp_path / base).unlink()
    assert sorted(entry.stale) == sorted([own, base])


def test_a_method_in_a_folder_brings_the_whole_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "headstart" / "methods" / "prefill" / "some_method"
    folder.mkdir(parents=True)
    (folder / "method.py").write_text("class Method:\n    pass\n")
    (folder / "kernel.py").write_text("")
    monkeypatch.setattr(ledger_sources, "_ROOT", tmp_path)
    monkeypatch.setattr(ledger_sources, "_METHODS", tmp_path / "headstart" / "methods")
    monkeypatch.syspath_prepend(str(folder))
    import method  # pyright: ignore[reportMissingImports]

    names = set(source_digests([method.Method]))
    assert names == {f"headstart/methods/prefill/some_method/{name}.py" for name in ("method", "kernel")}


def test_crossover_is_that_of_its_verdicts() -> None:
    found = Crossover.of("TTFT", "a", "b", {64: "worse", 512: "better", 128: "same", 256: "better"})
    assert (found.lengths, found.length, found.monotone) == ([64, 128, 256, 512], 256, True)
    found = Crossover.of("TTFT", "a", "b", {64: "better", 128: "same", 256: "better"})
    assert (found.length, found.monotone) == (256, False)
    assert Crossover.of("TTFT", "a", "b", {64: "better", 128: "same"}).length is None
