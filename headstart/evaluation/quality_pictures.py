"""The needle picture (length against depth) and bits per byte by position, for terminals and as PNG."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from headstart.evaluation.quality_report import Score

# From nothing found to all found; the numbers stand beside the colours for those who cannot tell them apart.
_SHADES = ((20, "on red"), (50, "on dark_orange3"), (80, "on yellow4"), (100, "on dark_olive_green4"))
_ALL = "on green4"


def has_picture(scores: Sequence[Score], group: str) -> list[Score]:
    """The scores that are split by `group`, in the order of their lengths."""
    return sorted((score for score in scores if score.groups.get(group)), key=lambda score: score.length)


def heat_map(scores: Sequence[Score]) -> Table:
    """Scores of one needle by depth (rows, percent of the text before it) and length (columns)."""
    table = Table(box=None, padding=(0, 1))
    table.add_column("depth", justify="right")
    for score in scores:
        table.add_column(f"{score.length:,}", justify="right")
    for depth in _depths(scores):
        cells = [_cell(score.groups["depth"].get(depth)) for score in scores]
        table.add_row(f"{depth}%", *cells)
    return table


def _depths(scores: Sequence[Score]) -> list[str]:
    return sorted({depth for score in scores for depth in score.groups["depth"]}, key=int)


def _cell(value: float | None) -> Text:
    if value is None:
        return Text("-", style="dim")
    style = next((shade for below, shade in _SHADES if value < below), _ALL)
    return Text(f" {value:3.0f} ", style=style)


def draw_pictures(scores: Sequence[Score], directory: Path) -> list[Path]:
    """Write `needles.png`, `bits-per-byte.png`, `context-bits.png` where there are scores; none without matplotlib."""
    if find_spec("matplotlib") is None:
        return []
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = []
    needles = has_picture([score for score in scores if score.task == "niah_depth"], "depth")
    curves = has_picture(scores, "position")
    contexts = [score for score in scores if score.task == "context_bits" and score.skipped is None]
    for name, chosen, draw in (
        ("needles", needles, _draw_needles),
        ("bits-per-byte", curves, _draw_bits),
        ("context-bits", contexts if len(contexts) > 1 else [], _draw_context),
    ):
        if chosen:
            figure = Figure(figsize=(7, 4.2), layout="constrained")
            FigureCanvasAgg(figure)
            draw(figure, chosen)
            path = directory / f"{name}.png"
            figure.savefig(path, dpi=130)
            found.append(path)
    return found


def _draw_needles(figure: Any, scores: Sequence[Score]) -> None:
    depths = _depths(scores)
    grid = [[score.groups["depth"].get(depth, float("nan")) for score in scores] for depth in depths]
    axes = figure.add_subplot()
    image = axes.imshow(grid, cmap="RdYlGn", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(scores)), [f"{score.length:,}" for score in scores])
    axes.set_yticks(range(len(depths)), [f"{depth}%" for depth in depths])
    axes.set(xlabel="length in tokens", ylabel="text before the needle", title="Needle found, in percent")
    for row, values in enumerate(grid):
        for column, value in enumerate(values):
            if value == value:
                axes.text(column, row, f"{value:.0f}", ha="center", va="center")
    figure.colorbar(image)


def _draw_bits(figure: Any, scores: Sequence[Score]) -> None:
    axes = figure.add_subplot()
    for score in scores:
        ends = [int(name.split("-")[1]) for name in score.groups["position"]]
        axes.plot(ends, list(score.groups["position"].values()), marker="o", label=f"windows of {score.length:,}")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="position up to, in tokens", ylabel="bits per byte", title="Held-out text by position")
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_context(figure: Any, scores: Sequence[Score]) -> None:
    axes = figure.add_subplot()
    scores = sorted(scores, key=lambda score: score.length)
    axes.errorbar([s.length for s in scores], [s.score for s in scores], [s.error for s in scores], marker="o")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="context in tokens", ylabel="bits per byte", title="The same held-out tokens after more context")
    axes.grid(alpha=0.3)
