"""`headstart bench serve`: what is refused, what is shown, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from headstart.cli.bench_serve import serve
from headstart.errors import HeadstartError
from headstart.evaluation.load.result import read_load
from tests.evaluation.load.conftest import StubServer, stub

__all__ = ["stub"]

Start = Callable[..., StubServer]
SHORT = ("--rate", "40", "--num-requests", "8", "--input-len", "8", "--output-len", "4", "--warmup", "1")


def run(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(serve)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--url", "http://x", "--use", "sarathi-serve"], "--use is for a server that this command starts"),
        (["--url", "http://x", "MODEL"], "--model is for a server that this command starts"),
        (["--rate", "1", "--users", "2"], "only one of them"),
        (["--rate", "0"], "rate must be a number above 0"),
        (["--input-len", "long"], "'long' is no length"),
        (["--slo", "tftt=1"], "did you mean 'ttft'"),
        (["--capacity"], "needs an SLO"),
        (["--capacity", "--slo", "itl=0.1"], "growing queue"),
        (["--trace", "/nowhere/at/all"], "/nowhere/at/all cannot be read"),
        (["--url", "http://127.0.0.1:1"], "no server answers"),
        (["--url", "nonsense"], "is no address"),
    ],
)
def test_bad_input_gets_a_sentence_before_a_model_loads(tmp_path: Path, arguments: list[str], says: str) -> None:
    ran = run(*arguments, "--out", tmp_path / "out")
    assert isinstance(ran.exception, HeadstartError)
    assert says in str(ran.exception)
    assert not (tmp_path / "out").exists()


def test_an_earlier_result_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "load.jsonl").write_text("precious")
    ran = run("--out", tmp_path)
    assert "choose a new directory with --out" in str(ran.exception)


def test_a_malformed_trace_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00,1,1\nyesterday,1,1\n")
    assert "line 3" in str(run("--trace", tmp_path / "t.csv").exception)


def test_a_load_is_shown_and_kept(stub: Start, tmp_path: Path) -> None:
    server = stub(first=0.01, gap=0.01)
    ran = run(*SHORT, "--url", server.url, "--out", tmp_path / "out", "--slo", "ttft=10,itl=5s")
    assert ran.exit_code == 0, ran.output
    for part in ("8 requests (8 ok)", "time to first token (TTFT)", "between tokens (ITL)", "goodput at ttft=10,itl=5"):
        assert part in ran.stdout
    assert "the load generator took" in ran.stdout
    assert "8 requests at 40 per second" in ran.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"load.json", "load.jsonl"} <= names
    assert read_load(tmp_path / "out" / "load.jsonl").summary.answered == 8


def test_json_is_the_whole_of_standard_output(stub: Start, tmp_path: Path) -> None:
    ran = run(*SHORT, "--url", stub(first=0.01, gap=0.0).url, "--out", tmp_path / "out", "--json")
    data = json.loads(ran.stdout)
    assert data["summary"]["outcomes"] == {"ok": 8}
    assert data == json.loads((tmp_path / "out" / "load.json").read_text())


def test_a_load_whose_requests_all_fail_is_a_failure(stub: Start, tmp_path: Path) -> None:
    server = stub(first=0.01, gap=0.01, status={str(number): 503 for number in range(1, 9)})
    ran = run(*SHORT, "--url", server.url, "--out", tmp_path / "out")
    assert ran.exit_code == 1
    assert "8 HTTP 503" in ran.stdout
    assert "a request failed: HTTP 503: refused with 503" in ran.stdout


def test_the_capacity_is_searched_for(stub: Start, tmp_path: Path) -> None:
    """One request at a time, each 0.03 s: at more than 33 per second the queue grows."""
    server = stub(first=0.03, gap=0.0, serial=True)
    load = [*SHORT, "--rate", "15", "--num-requests", "20", "--output-len", "1", "--cv", "0"]
    ran = run(*load, "--url", server.url, "--out", tmp_path / "out", "--capacity", "--slo", "ttft=120ms")
    assert ran.exit_code == 0, ran.output
    data = json.loads((tmp_path / "out" / "capacity.json").read_text())
    assert 0 < data["rate"] < data["bound"]
    assert "capacity: " in ran.stdout
    assert len(data["loads"]) == len(list((tmp_path / "out").glob("load-*.jsonl")))


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (signal.SIGINT, 130, "interrupted by Ctrl-C"),
        (signal.SIGTERM, 143, "ended by SIGTERM"),
        (signal.SIGKILL, -9, "killed"),
    ],
)
def test_whatever_ends_it_leaves_a_valid_partial_result(
    stub: Start, tmp_path: Path, number: int, code: int, says: str
) -> None:
    server = stub(first=0.01, gap=0.05)
    arguments = [*SHORT, "--num-requests", "2000", "--url", server.url, "--out", str(tmp_path / "out")]
    command = "import typer; from headstart.cli.bench_serve import serve; a = typer.Typer(); a.command()(serve); a()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
        # As from a terminal, wherever these tests run.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    path = tmp_path / "out" / "load.jsonl"
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == code, printed
    result = read_load(path)
    assert result.partial is not None and says in result.partial
    assert 0 < result.summary.answered < 2000
    if number != signal.SIGKILL:
        assert f"partial result: {result.partial}" in printed
        assert "cut" in result.summary.outcomes
        assert (tmp_path / "out" / "load.json").is_file()
