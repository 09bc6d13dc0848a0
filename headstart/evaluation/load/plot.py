"""A load over time, as a picture: the gaps between tokens with the probe's among them, and first tokens by arrival."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from headstart.evaluation.load.figures import gaps_over_time
from headstart.evaluation.load.result import LoadResult
from headstart.evaluation.load.settings import LoadError

_SUFFIXES = (".png", ".svg")
# Tokens that came together have no gap to speak of; a log scale would give them most of the picture.
_SMALLEST_SHARE = 0.1
_OTHERS, _PROBE, _FAILED = "#8a8f98", "#c2410c", "#b91c1c"


def plot_loads(loads: Mapping[str, LoadResult], stem: Path) -> list[Path]:
    """Draw loads side by side, with equal axes, as PNG and SVG.

    Args:
        loads: by the name of what was loaded.
        stem: path of the pictures without their suffix.

    Returns:
        The paths of the pictures.

    Raises:
        LoadError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise LoadError("pictures need matplotlib; get it with: pip install matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 5.5 * len(loads), 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(loads), sharex=True, sharey="row", squeeze=False)
    for column, (name, load) in enumerate(loads.items()):
        _draw_gaps(axes[0][column], load)
        _draw_first_tokens(axes[1][column], load)
        axes[0][column].set_title(name + (" (partial)" if load.partial else ""))
        axes[1][column].set_xlabel("seconds since the load began")
    axes[0][0].set_ylabel("between tokens, ms")
    axes[1][0].set_ylabel("to first token, ms")
    paths = [stem.with_name(stem.name + suffix) for suffix in _SUFFIXES]
    for path in paths:
        figure.savefig(path, dpi=150)
    return paths


def _draw_gaps(axis: Any, load: LoadResult) -> None:
    """Every gap at the time at which it ended; those of the probe as lines as long as they took, so that a stall is one
    high and long line.
    """
    others = gaps_over_time(record for record in load.records if record.kind == "load")
    # Tens of thousands of points as shapes would make a vector file that no viewer opens.
    _scatter(axis, others, s=4, color=_OTHERS, label="requests", rasterized=True)
    probe = gaps_over_time(record for record in load.records if record.kind == "probe")
    if probe:
        ends, gaps = np.array(probe).T
        label = "probe: one long decode"
        axis.hlines(gaps * 1000, ends - gaps, ends, color=_PROBE, linewidth=2.5, label=label, rasterized=True)
        axis.axvline(0, color="black", linewidth=0.7, linestyle=":")
    gaps = [gap for _, gap in others + probe]
    if any(gaps):
        axis.set_yscale("log")
        axis.set_ylim(bottom=float(np.median([gap for gap in gaps if gap > 0])) * 1000 * _SMALLEST_SHARE)
        axis.legend(loc="upper left", fontsize="small")
    axis.grid(alpha=0.25)


def _draw_first_tokens(axis: Any, load: LoadResult) -> None:
    """Time to first token by intended arrival; requests that got none stand on the axis."""
    records = [record for record in load.records if record.kind == "load"]
    answered = [(record.at, record.ttft) for record in records if record.ttft is not None]
    _scatter(axis, answered, s=12, color=_OTHERS)
    failed = [(record.at, 0.0) for record in records if record.ttft is None]
    _scatter(axis, failed, s=24, color=_FAILED, marker="x", label="no token")
    if failed:
        axis.legend(loc="upper left", fontsize="small")
    axis.grid(alpha=0.25)


def _scatter(axis: Any, points: list[tuple[float, float]], **style: Any) -> None:
    """Points of times in seconds and values in seconds, which are drawn in milliseconds."""
    if points:
        axis.scatter([time for time, _ in points], [value * 1000 for _, value in points], **style)
