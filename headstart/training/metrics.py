"""What a run leaves to look at: `metrics.jsonl`, a plot, TensorBoard when asked, and a progress bar meanwhile."""

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from headstart.training.errors import TrainingError


class RunReport:
    """Writes every `log_every`-th step, and every evaluation, to `directory/metrics.jsonl`, and shows progress.

    Args:
        directory: of the run.
        steps: of the whole run.
        log_every: steps between lines.
        peak_flops: what the device does at best, for the share that is reached (MFU); 0 leaves it out.
        resumed_at: lines of later steps are dropped, since they are about to be made again.
        tensorboard: write TensorBoard files too.
        console: where the bar is shown.
    """

    def __init__(
        self,
        directory: Path,
        steps: int,
        *,
        log_every: int,
        peak_flops: float = 0.0,
        resumed_at: int = 0,
        tensorboard: bool = False,
        console: Console | None = None,
    ) -> None:
        self.path = directory / "metrics.jsonl"
        self._log_every, self._peak = log_every, peak_flops
        _keep_until(self.path, resumed_at)
        self._board = _board(directory / "tensorboard", resumed_at) if tensorboard else None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
            refresh_per_second=2,
        )
        self._bar = self._progress.add_task("training", total=steps, completed=resumed_at, figures="")
        self._seconds, self._tokens, self._flops = 0.0, 0, 0.0
        self._last_tokens: int | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if self._board is not None:
            self._board.close()

    def step(self, record: dict[str, Any]) -> None:
        """Count a step; write a line when one is due."""
        before = self._last_tokens
        self._last_tokens = record["tokens"]
        if before is not None:
            self._seconds += record["seconds"]
            self._flops += record["flops"]
            self._tokens += record["tokens"] - before
        figures = f"loss {record['loss']:.4f}"
        speed = self._tokens / self._seconds if self._seconds else 0.0
        if speed:
            figures += f" · {speed:,.0f} tokens/s"
            if self._peak:
                figures += f" · MFU {self._flops / self._seconds / self._peak:.0%}"
        self._progress.update(self._bar, completed=record["step"], description=record["phase"], figures=figures)
        if record["step"] % self._log_every == 0 or record["step"] == 1:
            line = {key: value for key, value in record.items() if key not in ("seconds", "flops")}
            if speed:
                line["tokens_per_second"] = round(speed, 1)
                if self._peak:
                    line["mfu"] = round(self._flops / self._seconds / self._peak, 4)
            self._write(line)
            self._seconds, self._tokens, self._flops = 0.0, 0, 0.0

    def evaluation(self, record: dict[str, Any]) -> None:
        """Write and show an evaluation."""
        self._write({"evaluation": True, **record})
        figures = ", ".join(f"{k} {v:.4f}" for k, v in record.items() if isinstance(v, float))
        self._progress.console.print(f"step {record['step']}: {figures}", highlight=False)

    def _write(self, record: dict[str, Any]) -> None:
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise TrainingError(f"{self.path} cannot be written: {error.strerror or error}") from None
        if self._board is not None:
            for name, value in record.items():
                if isinstance(value, int | float) and name != "step":
                    self._board.add_scalar(name, value, record["step"])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, without a last one that was cut off."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def plot_run(directory: Path) -> Path | None:
    """Draw `metrics.png` from `metrics.jsonl`: losses, learning rate and speed over tokens; None without Matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    records = read_metrics(directory / "metrics.jsonl")
    steps = [record for record in records if "loss" in record]
    held_out = [record for record in records if record.get("evaluation")]
    if not steps:
        return None
    figure = Figure(figsize=(9, 8), layout="constrained")
    loss, rate, speed = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1, 1))
    tokens = [record["tokens"] / 1e6 for record in steps]
    loss.plot(tokens, [record["loss"] for record in steps], linewidth=0.8, label="training (nats per token)")
    for name in sorted({key for record in held_out for key in record if key.endswith("bits_per_byte")}):
        points = [(record["tokens"] / 1e6, record[name]) for record in held_out if name in record]
        loss.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name.replace("_", " "))
    loss.legend(fontsize=8)
    rate.plot(tokens, [record["learning_rate"] for record in steps], linewidth=0.8)
    rate.set_ylabel("learning rate")
    timed = [record for record in steps if "tokens_per_second" in record]
    speed.plot([r["tokens"] / 1e6 for r in timed], [r["tokens_per_second"] for r in timed], linewidth=0.8)
    speed.set_ylabel("tokens/s")
    speed.set_xlabel("million tokens")
    for axes in (loss, rate, speed):
        axes.grid(alpha=0.3)
    path = directory / "metrics.png"
    figure.savefig(path, dpi=110)
    return path


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Summed loss over the bytes of the text that it is of."""
    return nats / math.log(2) / text_bytes


def _keep_until(path: Path, step: int) -> None:
    """Drop the lines of steps after this one."""
    try:
        kept = [record for record in read_metrics(path) if record["step"] <= step] if step else []
        beside = path.with_suffix(".partial")
        beside.write_text("".join(json.dumps(record) + "\n" for record in kept))
        beside.replace(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} cannot be continued: {error}; move it away") from None


def _board(directory: Path, resumed_at: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise TrainingError("TensorBoard is not installed: pip install 'headstart[train]'") from None
    return SummaryWriter(str(directory), purge_step=resumed_at + 1 if resumed_at else None)
