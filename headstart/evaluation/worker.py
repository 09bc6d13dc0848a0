"""One side of a benchmark in a process of its own, that loads once and then measures what it is told to."""

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import torch

from headstart.errors import HeadstartError
from headstart.evaluation.machine import thread_environment
from headstart.evaluation.sides import BenchmarkError, SideSettings, load_side


class SideProcess:
    """The parent's handle of a side's process; one JSON line goes out per call, one comes back.

    Args:
        settings: what the side loads.

    Raises:
        BenchmarkError: the side could not be loaded; the sentence says why.
    """

    def __init__(self, settings: SideSettings) -> None:
        self.settings = settings
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "headstart.evaluation.worker", json.dumps(settings.to_json())],
            env=thread_environment(settings.threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            # Ctrl-C is for the parent, which ends the side when it is done with it.
            start_new_session=True,
        )
        try:
            self.versions: dict[str, str] = self._answer("loading")["result"]
        except BaseException:
            self.close()
            raise

    def call(self, name: str, *arguments: Any) -> dict[str, Any]:
        """Call a measurement of the side.

        Returns:
            `result` (the measurement's own), `seconds` it took, `peak_rss` in bytes while it ran, and
            `background_load`, the share of the cores that other processes used meanwhile.

        Raises:
            BenchmarkError: the side failed or died.
        """
        assert self._process.stdin is not None
        # If the side is gone, the missing answer below says so, with the log.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"call": name, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
        return self._answer(name)

    def _answer(self, task: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise BenchmarkError(
                f"the {self._name} process ended with exit code {code} during {task}{self._last_words()}"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(f"{self._name} failed during {task}: {answer['error']}")
        return answer

    @property
    def _name(self) -> str:
        return f"{self.settings.side} {self.settings.dtype}"

    def _last_words(self) -> str:
        """The last line that the process wrote to stderr, as the tail of a sentence."""
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return f"; its last words were: {lines[-1]}" if lines else ""

    def close(self) -> None:
        """End the process; a second call does nothing."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None and not stream.closed:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def measured_call(run: Callable[[], Any]) -> dict[str, Any]:
    """Run once; the answer is described at `SideProcess.call`."""
    _reset_peak_rss()
    busy, own, start = _busy_seconds(), time.process_time(), time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    foreign = (_busy_seconds() - busy) - (time.process_time() - own)
    return {
        "result": vars(result) if hasattr(result, "__dict__") else result,
        "seconds": seconds,
        "peak_rss": _peak_rss(),
        "background_load": max(0.0, foreign / (seconds * (psutil.cpu_count() or 1))),
    }


def _busy_seconds() -> float:
    """Seconds that all cores together were in use, by anyone, time stolen by the hypervisor included."""
    times = psutil.cpu_times()._asdict()
    # A guest's time is counted in user and nice already.
    skipped = ("idle", "iowait", "guest", "guest_nice")
    return sum(seconds for name, seconds in times.items() if name not in skipped)


def _reset_peak_rss() -> None:
    """Let the kernel forget the peak so far, where it can; else peaks only grow."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_rss() -> int:
    """The highest resident memory in bytes since the last reset, mapped weight files included."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _serve(settings: SideSettings) -> None:
    """Load the side, then answer calls until stdin ends."""
    # Whatever a library prints goes to stderr: stdout carries the answers alone.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(settings.threads)

    def answer(run: Callable[[], dict[str, Any]]) -> bool:
        try:
            message = run()
        except HeadstartError as error:
            message = {"error": str(error)}
        except Exception as error:
            message = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(message) + "\n")
        return "error" not in message

    side: Any = None

    def load() -> dict[str, Any]:
        nonlocal side
        side = load_side(settings)
        return {"result": side.versions()}

    if not answer(load):
        return
    for line in sys.stdin:
        request = json.loads(line)
        method = getattr(side, request["call"])
        answer(lambda method=method, request=request: measured_call(lambda: method(*request["arguments"])))


if __name__ == "__main__":
    _serve(SideSettings(**json.loads(sys.argv[1])))
