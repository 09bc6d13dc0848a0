"""A server of this project in a process of its own, for as long as a block lasts."""

import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from types import TracebackType
from typing import Self
from urllib.error import URLError

from headstart.evaluation.load.settings import LoadError

_POLL_SECONDS = 0.05
_DRAIN_SECONDS = 2
_END_SECONDS = 20


class ServedModel:
    """`headstart serve` on a free port. Entering the block waits until it answers; leaving it, in whatever way, ends
    it, and so does the end of this process.

    Args:
        arguments: of the command: the model and its options, such as `["--use", "prefill-first"]`.
        threads: of PyTorch in that process (default: its own choice).

    Attributes:
        url: where it answers.
    """

    def __init__(self, arguments: Sequence[str] = (), threads: int | None = None) -> None:
        self._arguments, self._threads = arguments, threads
        self.url = ""

    def __enter__(self) -> Self:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        # The key is for the server that somebody else runs.
        environment.pop("HEADSTART_API_KEY", None)
        if self._threads is not None:
            environment["OMP_NUM_THREADS"] = str(self._threads)
        own = ["--host", "127.0.0.1", "--port", "0", "--log-level", "warning"]
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "headstart.evaluation.load.child", "serve"),
                *(*self._arguments, *own, "--shutdown-timeout", str(_DRAIN_SECONDS)),
            ],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            # Ctrl-C is for the load generator, which ends the server when it is done with it.
            start_new_session=True,
        )
        try:
            self.url = self._address()
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def _address(self) -> str:
        """What it prints when the model is loaded."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if match := re.search(r"(http://\S+:\d+)/v1", line):
                return match[1]
        raise self._failure()

    def _wait_until_ready(self) -> None:
        while self._process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=_END_SECONDS).close()
                return
            except (URLError, ConnectionError, TimeoutError):
                time.sleep(_POLL_SECONDS)
        raise self._failure()

    def _failure(self) -> LoadError:
        """Why the process ended, in its own words."""
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        words = lines[-1].removeprefix("headstart: ") if lines else f"exit status {self._process.returncode}"
        return LoadError(f"the server did not start: {words}")

    def _stop(self) -> None:
        """End the process: asked first, then made to."""
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
