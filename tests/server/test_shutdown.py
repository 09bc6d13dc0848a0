"""The `serve` command as a process: signals, the port, and what it says at start."""

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from headstart.cli.main import main
from headstart.cli.serve_options import LimitOptions
from headstart.errors import HeadstartError
from headstart.server.run import Tls, bind

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "headstart.cli.main", "serve"]
LONG: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 500, "ignore_eos": True, "stream": True}


class Process:
    """A server process and what it has printed."""

    def __init__(self, *arguments: str) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.popen = subprocess.Popen(
            [*COMMAND, "--port", "0", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.printed = ""
        self.ready = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self.ready.wait(60), self.printed
        address = re.search(r"https?://[\d.]+:\d+", self.printed)
        assert address, self.printed
        self.url = address[0]
        self.children = psutil.Process(self.popen.pid).children(recursive=True)
        assert self.children, "the engine has a process of its own"

    def _read(self) -> None:
        for line in self.popen.stdout or ():
            self.printed += line
            if "startup complete" in line:
                self.ready.set()
        self.ready.set()

    def end(self) -> int:
        code = self.popen.wait(timeout=60)
        self._reader.join()
        return code


@contextmanager
def serving(*arguments: str) -> Iterator[Process]:
    """A server, which ends at last by kill -9 if it has not ended before; its engine ends with it either way."""
    process = Process(*arguments)
    try:
        yield process
    finally:
        process.popen.kill()
        process.end()
        _, alive = psutil.wait_procs(process.children, timeout=60)
    assert not alive


def texts(lines: Iterator[str]) -> list[dict[str, Any]]:
    data = [line.removeprefix("data: ") for line in lines if line]
    assert data.pop() == "[DONE]"
    return [json.loads(item) for item in data]


def test_from_the_start_to_sigterm_which_lets_running_requests_finish(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSTART_API_KEY", "one two")
    with serving(str(checkpoint), "--served-model-name", "tales") as process:
        for said in ("tales", "curl", "Authorization"):
            assert said in process.printed
        assert re.search(r"stack +exact", process.printed)
        assert httpx.get(f"{process.url}/v1/models").status_code == 401
        for key in ("one", "two"):
            with httpx.Client(base_url=process.url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as http:
                assert http.get("/v1/models").json()["data"][0]["id"] == "tales"
        with httpx.Client(base_url=process.url, headers={"Authorization": "Bearer two"}, timeout=60) as http:
            with http.stream("POST", "/v1/completions", json=LONG) as response:
                lines = response.iter_lines()
                next(lines)
                process.popen.send_signal(signal.SIGTERM)
                health = http.get("/health")
                while health.status_code == 200:
                    health = http.get("/health")
                assert health.json() == {"status": "draining"}
                refused = http.post("/v1/completions", json={"prompt": "x"})
                assert refused.status_code == 503
                assert refused.headers["retry-after"]
                assert "shutting down" in refused.json()["error"]["message"]
                events = texts(lines)
            assert events[-1]["choices"][0]["finish_reason"] == "length"
        assert process.end() == 0


@pytest.mark.parametrize("how", ["timeout", "second signal"])
def test_requests_that_run_on_are_ended(checkpoint: Path, how: str) -> None:
    # A step per prompt token makes the request last longer than the grace time on any machine.
    slow = ["--max-num-batched-tokens", "1"]
    grace = ["--shutdown-timeout", "0.05" if how == "timeout" else "600"]
    many = LONG | {"n": 64, "prompt": [1] * 10}
    with serving(str(checkpoint), *slow, *grace) as process, httpx.Client(base_url=process.url, timeout=60) as http:
        with http.stream("POST", "/v1/completions", json=many) as response:
            lines = response.iter_lines()
            next(lines)
            process.popen.send_signal(signal.SIGTERM)
            if how == "second signal":
                while http.get("/health").status_code == 200:
                    pass
                process.popen.send_signal(signal.SIGINT)
            events = texts(lines)
        assert "shut down" in events[-1]["error"]["message"]
        assert process.end() == 0


def test_a_signal_to_every_process_lets_running_requests_finish_too(checkpoint: Path) -> None:
    """As a terminal sends Ctrl-C, and systemd its SIGTERM: to the engine's process as well, which minds neither."""
    with serving(str(checkpoint)) as process, httpx.Client(base_url=process.url, timeout=60) as http:
        with http.stream("POST", "/v1/completions", json=LONG) as response:
            lines = response.iter_lines()
            next(lines)
            os.killpg(process.popen.pid, signal.SIGINT)
            for child in process.children:
                child.send_signal(signal.SIGTERM)
            assert texts(lines)[-1]["choices"][0]["finish_reason"] == "length"
        assert process.end() == 0


def test_https_is_served_with_a_key_and_its_certificate(checkpoint: Path, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject]
    subprocess.run([*made, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    files = ["--ssl-keyfile", str(key), "--ssl-certfile", str(certificate)]
    with serving(str(checkpoint), *files) as process:
        assert process.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(certificate))
        assert httpx.get(f"{process.url}/health", verify=trusted).json() == {"status": "ok"}
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{process.url}/health")
    for wrong, said in (
        ((key, None), "both"),
        ((key, tmp_path / "none.pem"), "no file"),
        ((certificate, key), "PEM"),
    ):
        with pytest.raises(HeadstartError, match=said):
            Tls.of(*wrong)


@pytest.mark.parametrize(
    "wrong", [{"tenants": Path("/nowhere.yaml")}, {"request_timeout": 0.0}, {"max_body_bytes": 10**11}]
)
def test_limits_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(HeadstartError) as caught:
        LimitOptions(**wrong).read(["key"])
    assert "\n" not in str(caught.value)


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process, where it is to be refused: exit status and what it says."""

    def command(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["headstart", "serve", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr().err.strip()
        assert "Traceback" not in said
        return int(ended.value.code or 0), said

    return command


def test_a_deadline_for_steps_is_for_an_engine_in_its_own_process(run: Run) -> None:
    code, said = run("--no-engine-process", "--engine-step-timeout", "5", "--port", "0")
    assert code == 2 and "leave out --no-engine-process" in said


def test_a_port_in_use_is_said_before_a_model_is_loaded(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = run("/nowhere/at/all", "--port", str(port))
    assert code == 2
    assert f"port {port} on 127.0.0.1 is in use" in said
    assert len(said.splitlines()) == 1


def test_a_method_that_requests_cannot_bring_is_said_before_a_model_is_loaded(run: Run) -> None:
    code, said = run("/nowhere/at/all", "--port", "0", "--allow-use", "orca")
    assert code == 2
    assert "--allow-use orca: orca cannot be one request's own" in " ".join(said.split())


def test_a_model_that_is_not_there_is_said_in_one_line(run: Run) -> None:
    code, said = run("/nowhere/at/all", "--port", "0")
    assert code == 2
    assert "/nowhere/at/all" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", 99999), ("127.0.0.1", -1), ("not a host", 0), ("", 70000), ("192.0.2.1", 0)]
)
def test_an_address_that_cannot_be_had(host: str, port: int) -> None:
    with pytest.raises(HeadstartError, match="choose"):
        bind(host, port)
