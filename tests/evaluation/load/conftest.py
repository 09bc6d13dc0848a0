"""The stub server as a fixture."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

STUB = Path(__file__).with_name("stub.py")


@dataclass
class StubServer:
    """A stub that runs."""

    process: subprocess.Popen[str]
    url: str

    def log(self) -> dict[str, Any]:
        """The requests that came, with the times at which their tokens were sent, and the number of connections."""
        with urllib.request.urlopen(f"{self.url}/sent") as answer:
            return json.load(answer)


@pytest.fixture
def stub() -> Iterator[Callable[..., StubServer]]:
    """Start stub servers with the given behaviour; they end with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(**config: Any) -> StubServer:
        process = subprocess.Popen(
            [sys.executable, "-S", str(STUB), json.dumps(config)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        return StubServer(process, f"http://127.0.0.1:{int(process.stdout.readline())}")

    yield start
    for process in started:
        process.kill()  # which also ends one that has stopped itself
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
