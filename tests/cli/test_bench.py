"""`headstart bench` and `headstart ledger`, as users type them."""

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from headstart.cli.bench.progress import fresh_directory, given, numbers
from headstart.errors import HeadstartError
from headstart.evaluation import ledger
from headstart.evaluation.ledger import LedgerEntry
from headstart.evaluation.sides import missing_packages

PEERS = [side for side in ("transformers", "llama.cpp") if not missing_packages(side)]
COMMITTED = Path(__file__).parents[2] / "benchmarks" / "ledger"


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """The commands say what SIGTERM does; this process goes on afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_method_from_end_to_end(headstart: Callable, tmp_path: Path) -> None:
    """Two servers under load, the distance from exact, the ledger, the page: all of it, small."""
    out, kept = tmp_path / "out", tmp_path / "ledger"
    ran = headstart(
        *("bench", "method", "sarathi-serve:chunk=128", "--shape", "tiny", "--quick", "--json"),
        *("--out", str(out), "--ledger", str(kept)),
    )
    assert ran.code == 0, ran.err
    (entry,) = ledger.check(kept)
    assert entry == LedgerEntry.model_validate(ran.json)
    assert (entry.kind, entry.key, entry.method) == ("method", "sarathi-serve", "sarathi-serve")
    assert entry.model == "random tiny" and entry.stale == [] and entry.partial is None
    assert {Path(path).name for path in entry.sources} == {"sarathi_serve.py", "prefill_first.py"}
    sides = ("prefill-first", "sarathi-serve:chunk=128")
    rows = {(row.name, row.side): row for row in entry.rows}
    for name in ("ITL p99", "TTFT p50", "probe gap max", "output throughput", "output throughput (queue)"):
        for side in sides:
            assert rows[name, side].median > 0
    assert rows["top-1 agreement at 256", sides[1]].values == [100.0]
    assert entry.ratios[0].name == "ITL p99"
    assert (entry.ratios[0].side, entry.ratios[0].against) == (sides[1], sides[0])
    assert "will take about" in ran.err
    assert LedgerEntry.model_validate_json((out / "result.json").read_text()) == entry
    page = (out / "report.html").read_text()
    assert "sarathi-serve on random tiny" in page and "vLLM" in page
    if find_spec("matplotlib"):
        assert {"load.png", "load.svg", "steps.png", "steps.svg"} <= {path.name for path in out.iterdir()}
        assert page.count("data:image/svg+xml") == 2
    assert {line.side for line in entry.timelines} == set(sides)
    assert all(sum(line.prefill) and sum(line.decode) for line in entry.timelines)
    # Every request of every load is kept.
    assert len(list(out.glob("*.jsonl"))) == 4


def test_a_comparison_from_end_to_end(headstart: Callable, tmp_path: Path) -> None:
    other = "sarathi-serve:chunk=32"
    ran = headstart(
        *("bench", "compare", "exact", other, "--shape", "tiny", "--dtype", "float32", "--lengths", "32,64"),
        *("--quick", "--threads", "1", "--out", str(tmp_path / "out"), "--ledger", str(tmp_path / "ledger")),
    )
    assert ran.code == 0, ran.err
    assert "TTFT" in ran.out and "times better" in ran.out and "measured peaks" in ran.out
    assert "will take about" in ran.err
    assert (tmp_path / "out" / "report.html").is_file()
    (entry,) = ledger.check(tmp_path / "ledger")
    assert (entry.kind, entry.key, entry.model, entry.partial) == ("compare", "compare", "random tiny", None)
    assert {Path(path).name for path in entry.sources} == {"sarathi_serve.py"} and entry.stale == []
    rows = {(row.name, row.side): row for row in entry.rows}
    for metric in ("TTFT", "decode", "peak memory", "KV cache"):
        for length in (32, 64):
            for side in ("exact", other):
                row = rows[f"{metric} at {length}", side]
                assert len(row.values) == 2 and row.spread[0] > 0
    # The same greedy answers, whatever the chunks.
    assert rows["first tokens equal to exact", other].values == [1.0, 1.0]
    assert rows["TTFT at 64", "exact"].details["fraction_of_matmul_peak"] > 0
    assert rows["decode at 64", "exact"].details["fraction_of_copy_bandwidth"] > 0
    assert {(ratio.side, ratio.against) for ratio in entry.ratios} == {(other, "exact")}
    # Two rounds say too little of noise.
    assert {v for crossover in entry.crossovers for v in crossover.verdicts} == {"unknown"}


def test_the_engine_from_end_to_end(headstart: Callable, tmp_path: Path) -> None:
    arguments = ("--quick", "--threads", "1", "--dtype", "float32", "--repeats", "2", "--json")
    ran = headstart("bench", "engine", *arguments, "--ledger", str(tmp_path))
    assert ran.code == 0, ran.err
    (entry,) = ledger.check(tmp_path)
    assert entry == LedgerEntry.model_validate(ran.json)
    assert entry.key == "engine-quick" and entry.peaks is not None and entry.peaks.threads == 1
    assert ran.json["settings"]["shape"] == "tiny"

    rows = {(row.name, row.side): row for row in entry.rows}
    for name in ("prefill 128", "prefill 256", "decode at 128", "8 requests together"):
        for side in ("headstart", *PEERS):
            row = rows[name, f"{side} float32"]
            assert len(row.values) == 2 and row.spread[0] > 0
            assert row.details["peak_rss_bytes"] > 1 << 20
    for ratio in entry.ratios:
        assert ratio.side == "headstart float32" and ratio.value > 0 and ratio.target is None
    assert {ratio.against.split()[0] for ratio in entry.ratios} == set(PEERS)
    for peer in PEERS:
        assert peer in entry.versions or peer == "llama.cpp"

    # In float32 all sides must compute the same thing.
    agreements = [row for row in entry.rows if row.name.startswith("next tokens equal")]
    assert len(agreements) == len(PEERS)
    for row in agreements:
        assert row.values == [1.0]
        assert row.details["max_logprob_difference"] < 1e-3
    assert "will take about" in ran.err


def test_the_engine_refuses_before_it_measures(headstart: Callable, tmp_path: Path) -> None:
    for arguments in (["--side", "vllm"], ["--quick", "--key", "A B", "--ledger", str(tmp_path / "l")]):
        ran = headstart("bench", "engine", *arguments)
        assert ran.code == 2 and "Traceback" not in ran.err
    assert not (tmp_path / "l").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("method", "sarathi-serv"), "did you mean 'sarathi-serve'"),
        (("method", "sarathi-serve", "--repeats", "0"), "at least 1"),
        (("method", "sarathi-serve", "--lengths", "1,x"), "--lengths takes whole numbers"),
        (("method", "sarathi-serve", "--model", "/nowhere"), "no directory"),
        (("compare", "exact"), "at least 2"),
        (("compare", "exact", "vllm"), "pip install vllm"),
        (("compare", "exact", "transfomers"), "did you mean 'transformers'"),
        (("compare", "exact", "exact", "--lengths", "99999"), "beyond the 32768 positions"),
        (("quality", "--task", "niah_dept"), "did you mean 'niah_depth'"),
        (("quality", "nope"), "no method 'nope'"),
    ],
)
def test_refusals(headstart: Callable, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    out, kept = tmp_path / "out", tmp_path / "ledger"
    ran = headstart("bench", *arguments, "--out", str(out), "--ledger", str(kept))
    assert ran.code == 2 and words in ran.err
    assert "Traceback" not in ran.err
    assert not out.exists() and not kept.exists()


def test_results_never_go_over_others(headstart: Callable, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    ran = headstart("bench", "compare", "exact", "exact", "--out", str(tmp_path))
    assert ran.code == 2 and "is there already" in ran.err
    with pytest.raises(HeadstartError, match="there already"), fresh_directory(tmp_path / "mine"):
        pass


def test_an_unused_directory_goes_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), fresh_directory(tmp_path / "new" / "out") as directory:
        assert directory is not None and directory.is_dir()
        raise KeyboardInterrupt
    assert not (tmp_path / "new" / "out").exists()
    with fresh_directory(tmp_path / "kept") as directory:
        assert directory is not None
        (directory / "x").write_text("")
    assert (tmp_path / "kept" / "x").exists()
    with fresh_directory(None) as directory:
        assert directory is None


def test_numbers_and_given_options() -> None:
    assert numbers("1024, 4_096,", "lengths") == (1024, 4096) and numbers(None, "lengths") == ()
    assert given(a=None, b=[], c=[1], d=0) == {"c": (1,), "d": 0}


def _engine_entry() -> Path:
    """The committed entry of `headstart bench engine` as it is without options."""
    return next(path for path in COMMITTED.glob("engine-*.json") if json.loads(path.read_text())["key"] == "engine")


def test_ledger_check_and_show(headstart: Callable, tmp_path: Path) -> None:
    shutil.copy(_engine_entry(), tmp_path)
    checked = headstart("ledger", "check", str(tmp_path), "--json")
    assert checked.code == 0 and checked.json["refused"] == []
    assert [(entry["key"], entry["stale"]) for entry in checked.json["entries"]] == [("engine", False)]
    assert "engine" in headstart("ledger", "check", str(tmp_path)).out
    assert "prefill 2,048" in headstart("ledger", "show", "engine", "--ledger", str(tmp_path)).out
    assert headstart("ledger", "show", "engine", "--ledger", str(tmp_path), "--json").json[0]["key"] == "engine"
    missing = headstart("ledger", "show", "engin", "--ledger", str(tmp_path))
    assert missing.code == 2 and "did you mean 'engine'" in missing.err
    absent = headstart("ledger", "check", str(tmp_path / "absent"))
    assert absent.code == 2 and "no ledger directory" in absent.err


def test_ledger_check_names_what_is_stale_or_refused(headstart: Callable, tmp_path: Path) -> None:
    path = _engine_entry()
    source = "headstart/methods/schedule/sarathi_serve.py"
    content = json.loads(path.read_text()) | {"kind": "method", "key": "sarathi-serve", "sources": {source: "0" * 16}}
    (tmp_path / path.name.replace("engine", "sarathi-serve", 1)).write_text(json.dumps(content))
    checked = headstart("ledger", "check", str(tmp_path))
    assert checked.code == 0 and f"sarathi-serve is stale, since {source} changed" in checked.out
    others = {"a.json": '{"schema_version": 9}', "b.json": "not json"}
    for name, text in others.items():
        (tmp_path / name).write_text(text)
    refused = headstart("ledger", "check", str(tmp_path))
    assert refused.code == 2 and all(name in refused.err for name in others)
    assert "sarathi-serve" in refused.out
    assert {name: (tmp_path / name).read_text() for name in others} == others
