"""The whole of it: a server of this project with the built-in model, its methods and its counters."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from headstart.evaluation.load.plot import plot_loads
from headstart.evaluation.load.run import run_load
from headstart.evaluation.load.served import ServedModel
from headstart.evaluation.load.settings import Lengths, LoadError, LoadSettings, Slo


def test_a_few_requests_on_the_built_in_model(tmp_path: Path) -> None:
    settings = LoadSettings(
        rate=8.0,
        input_tokens=Lengths(40, 120),
        output_tokens=Lengths(4, 12),
        num_requests=12,
        probe=True,
        slos=(Slo(ttft=60.0), Slo(ttft=1e-6)),
    )
    with ServedModel(["--use", "prefill-first"], threads=1) as served:
        result = run_load(settings, served.url, file=tmp_path / "load.jsonl")
    assert result.partial is None
    assert result.summary.outcomes == {"ok": 12}
    assert (result.target.model, result.target.exact, result.target.max_model_len) == ("default", True, 32_768)
    for record in result.records:
        if record.kind == "load":
            assert (record.prompt_tokens, record.completion_tokens) == (record.asked_input, record.asked_output)
            assert record.cached_tokens == 0
    assert [goodput.share for goodput in result.summary.goodput] == [1.0, 0.0]
    counted = {item.name: item for item in result.agreement}
    for name in ("requests answered", "prompt tokens", "generated tokens", "cached prompt tokens"):
        assert counted[name].agrees, counted[name]
    assert counted["between tokens, mean"].agrees, counted["between tokens, mean"]
    # The server's clock starts after ours and stops before it.
    assert counted["sending to first token, mean"].ours >= counted["sending to first token, mean"].server
    rows = {row.name for row in result.to_rows("prefill-first")}
    assert {"TTFT p99", "ITL p99", "probe gap max", "output throughput", "goodput at ttft=60"} <= rows
    with pytest.raises(ProcessLookupError):
        os.kill(served._process.pid, 0)
    pytest.importorskip("matplotlib")
    pictures = plot_loads({"prefill-first": result, "again": result}, tmp_path / "load")
    assert [path.suffix for path in pictures] == [".png", ".svg"]
    assert all(path.stat().st_size > 1000 for path in pictures)


def test_a_server_that_cannot_start_says_why() -> None:
    with pytest.raises(LoadError, match=r"the server did not start: .*/nowhere"), ServedModel(["/nowhere"]):
        pass


def test_a_server_ends_when_the_process_that_started_it_is_gone() -> None:
    """Of which it hears by the end of its standard input."""
    command = [sys.executable, "-m", "headstart.evaluation.load.child", "serve", "--port", "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as server:
        assert server.stdin is not None
        server.stdin.close()
        assert server.wait(timeout=60) in (0, -signal.SIGTERM)
