"""Pictures of measurements, as PNG and SVG: cost over length with the crossover, and quality against cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from headstart.evaluation.ledger import Crossover, Row
from headstart.evaluation.load.plot import plot_loads
from headstart.evaluation.load.result import LoadResult
from headstart.evaluation.report_tables import figure, sides_of
from headstart.evaluation.sides import BenchmarkError
from headstart.evaluation.timeline import Timeline

# Steps of up to so many tokens are drawn in proportion, larger ones by the logarithm.
_LINEAR_TOKENS = 16
_SUFFIXES = (".png", ".svg")
# Told apart by people who do not see some colours, on white.
_COLOURS = ("#3b4252", "#c2410c", "#1d6fa5", "#5a7d2a", "#8b3fa0", "#a16207")


@dataclass(frozen=True)
class Picture:
    """A picture in its files, by suffix, with what it shows."""

    title: str
    caption: str
    files: dict[str, Path]


def check_pictures() -> None:
    """Refuse to draw without the library.

    Raises:
        BenchmarkError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise BenchmarkError("pictures need matplotlib; get it with: pip install matplotlib")


def draw_lengths(rows: Sequence[Row], metric: str, crossovers: Sequence[Crossover], stem: Path) -> Picture | None:
    """A metric over prompt lengths: every side with its spread, and how many times better than the first.

    Args:
        rows: of a ledger entry.
        metric: the one to draw.
        crossovers: of which those in this metric are marked.
        stem: path of the picture without suffix.

    Returns:
        None if it was taken at fewer than two lengths.
    """
    found = [row for row in rows if row.metric == metric and row.length is not None]
    sides = sides_of(found)
    if len({row.length for row in found}) < 2:
        return None
    canvas, axes = _figure(2 if len(sides) > 1 else 1)
    by_place = {(row.side, row.length): row for row in found}
    for colour, side in zip(_COLOURS * len(sides), sides, strict=False):
        line = sorted((row for row in found if row.side == side), key=lambda row: row.length or 0)
        _draw_band(axes[0], line, side, colour)
        if side != sides[0]:
            pairs = [(row, by_place[sides[0], row.length]) for row in line if (sides[0], row.length) in by_place]
            _draw_ratio(axes[1], pairs, side, colour)
    lengths = sorted({row.length for row in found if row.length is not None})
    for axis in axes:
        _length_axis(axis, lengths)
    unit = found[0].unit
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_formatter(lambda value, _: figure(value, unit))
    axes[0].yaxis.set_minor_formatter(lambda value, _: figure(value, unit))
    axes[0].set_ylabel(metric)
    axes[0].legend(fontsize="small")
    if len(sides) > 1:
        axes[1].axhline(1.0, color="black", linewidth=0.8)
        axes[1].set_ylabel(f"times better than {sides[0]}")
        for crossover in crossovers:
            if crossover.name == metric and crossover.length is not None:
                axes[1].axvline(crossover.length, color="black", linewidth=0.8, linestyle=":")
                axes[1].annotate(
                    f"pays from {crossover.length:,}",
                    (crossover.length, axes[1].get_ylim()[1]),
                    textcoords="offset points",
                    xytext=(4, -12),
                    fontsize="small",
                )
    caption = "Medians with the lowest and highest of all rounds; above the line at 1 a side is better than the first."
    return Picture(f"{metric} over prompt length", caption, _save(canvas, stem))


def draw_quality(rows: Sequence[Row], side: str, against: str, stem: Path) -> Picture | None:
    """What a side gains in time to first token against what it changes, a point per length that both were taken at.

    Returns:
        None where no length has both.
    """
    cost = {(row.side, row.length): row for row in rows if row.metric == "TTFT"}
    moved = {row.length: row for row in rows if row.metric == "KL from exact" and row.side == side}
    points = [
        (cost[against, length].median / cost[side, length].median, row.median, length)
        for length, row in sorted(moved.items(), key=lambda item: item[0] or 0)
        if (side, length) in cost and (against, length) in cost
    ]
    if not points:
        return None
    canvas, (axis,) = _figure(1)
    axis.plot([p[0] for p in points], [p[1] for p in points], color=_COLOURS[1], marker="o", label=side)
    for gain, distance, length in points:
        axis.annotate(f"{length:,}", (gain, distance), textcoords="offset points", xytext=(5, 5), fontsize="small")
    axis.axvline(1.0, color="black", linewidth=0.8)
    axis.set_xlabel(f"time to first token, times better than {against}")
    axis.set_ylabel("KL from the exact stack, nats per token")
    axis.margins(0.12)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize="small")
    caption = "Right is faster, up is further from the exact model; figures at the points are prompt lengths."
    return Picture("Quality against cost", caption, _save(canvas, stem))


def draw_loads(loads: Mapping[str, LoadResult], stem: Path) -> Picture:
    """Gaps between tokens over time, with those of one long decode among them: where it is stalled, and how long."""
    _make_directory(stem)
    files = {path.suffix: path for path in plot_loads(loads, stem)}
    caption = (
        "Above: every gap between tokens at the time at which it came; the probe is one long decode that should not "
        "feel the others. Below: time to first token by arrival. The first round, with the same arrivals for both."
    )
    return Picture("Who waits for whom", caption, files)


def draw_steps(timelines: Sequence[Timeline], stem: Path) -> Picture:
    """Tokens of every step over time, prompts stacked on answers, for each side over the same time."""
    caption = (
        "Every step of the engine while the same load makes it read most: as wide as the time it took, as high as it "
        "had tokens, those of prompts on those of answers, on a logarithmic scale. No token of any answer comes before "
        "its step has ended."
    )
    return Picture("What each step was made of", caption, _save(steps_figure(timelines), stem))


def steps_figure(timelines: Sequence[Timeline]) -> Any:
    """The canvas of `draw_steps`, for whoever keeps it elsewhere."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(11.0, 0.8 + 2.2 * len(timelines)), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots(len(timelines), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axis, line in zip(axes, timelines, strict=True):
        # Up at each step's beginning and down at its end: what is between two steps is idle.
        times = [time for start, took in zip(line.began, line.seconds, strict=True) for time in (start, start + took)]
        decode = [value for tokens in line.decode for value in (tokens, 0)]
        both = [value for d, p in zip(line.decode, line.prefill, strict=True) for value in (d + p, 0)]
        axis.fill_between(times, both, step="post", color=_COLOURS[1], linewidth=0, label="prompts")
        axis.fill_between(times, decode, step="post", color=_COLOURS[2], linewidth=0, label="answers")
        axis.set_title(f"{line.side}: longest step {figure(max(line.seconds), 's')}", fontsize="medium")
        axis.set_ylabel("tokens")
        axis.grid(alpha=0.25)
    # One answer's token must be seen beside a prompt of thousands.
    axes[0].set_yscale("symlog", linthresh=_LINEAR_TOKENS)
    axes[0].yaxis.set_major_formatter(lambda value, _: figure(value))
    axes[0].set_ylim(bottom=0)
    axes[0].legend(loc="upper right", fontsize="small")
    axes[-1].set_xlabel("seconds since the load began")
    axes[-1].set_xlim(max(line.began[0] for line in timelines), min(line.end for line in timelines))
    return canvas


def _draw_band(axis: Any, line: Sequence[Row], side: str, colour: str) -> None:
    lengths = [row.length for row in line]
    axis.plot(lengths, [row.median for row in line], color=colour, marker="o", markersize=4, label=side)
    axis.fill_between(
        lengths, [row.spread[0] for row in line], [row.spread[1] for row in line], color=colour, alpha=0.15
    )


def _draw_ratio(axis: Any, pairs: Sequence[tuple[Row, Row]], side: str, colour: str) -> None:
    def better(ours: float, theirs: float, row: Row) -> float:
        return ours / theirs if row.higher_is_better else theirs / ours

    lengths = [row.length for row, _ in pairs]
    axis.plot(
        lengths,
        [better(row.median, first.median, row) for row, first in pairs],
        color=colour,
        marker="o",
        markersize=4,
        label=side,
    )
    rounds = [[better(a, b, row) for a, b in zip(row.values, first.values, strict=False)] for row, first in pairs]
    axis.fill_between(lengths, [min(r) for r in rounds], [max(r) for r in rounds], color=colour, alpha=0.15)


def _figure(columns: int) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(1.0 + 5.0 * columns, 4.2), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.25)
    return canvas, list(axes)


def _length_axis(axis: Any, lengths: Sequence[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [figure(length) for length in lengths])
    axis.minorticks_off()
    axis.set_xlabel("prompt, tokens")


def _save(canvas: Any, stem: Path) -> dict[str, Path]:
    _make_directory(stem)
    files = {suffix: stem.with_name(stem.name + suffix) for suffix in _SUFFIXES}
    for suffix, path in files.items():
        canvas.savefig(path, dpi=150, metadata={"Date": None} if suffix == ".svg" else None)
    return files


def _make_directory(stem: Path) -> None:
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchmarkError(f"pictures could not be written to {stem.parent}: {error.strerror}") from None
