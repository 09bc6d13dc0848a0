"""The plan as a picture: the four quantities over the length of the context."""

from collections.abc import Sequence
from pathlib import Path

from headstart.evaluation.plan.fit import Fit
from headstart.evaluation.plots import check_pictures
from headstart.evaluation.report_tables import figure
from headstart.methods.analysis.long_context_analysis import Quantities


def plot_plan(rows: Sequence[Quantities], title: str, path: Path, fit: Fit | None = None) -> None:
    """Draw a plan; the suffix of the path says as what.

    Args:
        rows: by length.
        title: model and device.
        path: of the picture.
        fit: measured points, which are drawn beside the lines.

    Raises:
        BenchmarkError: matplotlib is not installed.
        OSError: the picture cannot be written.
        ValueError: a suffix that no picture has.
    """
    check_pictures()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(10, 6.5), layout="constrained")
    FigureCanvasAgg(canvas)
    lengths = [row.length for row in rows]
    panels = {
        "users whose keys fit": ([max(row.users, 0) for row in rows], ""),
        "prefill": ([row.prefill for row in rows], "s"),
        "decode, per token": ([row.decode for row in rows], "s"),
        "switching users": ([row.switch for row in rows], "s"),
    }
    for axis, (name, (values, unit)) in zip(canvas.subplots(2, 2).flat, panels.items(), strict=True):
        drawn = [(n, value) for n, value in zip(lengths, values, strict=True) if value]
        axis.set_title(name, fontsize="medium")
        if not drawn:
            axis.text(0.5, 0.5, "none", ha="center", transform=axis.transAxes)
            continue
        axis.plot(*zip(*drawn, strict=True), marker="o", markersize=4, color="#1d6fa5", label="at peak")
        measured = [row for row in fit.rows if name.startswith(row.what)] if fit is not None else []
        if measured:
            at = [row.length for row in measured]
            axis.plot(at, [row.measured for row in measured], "s", color="#c2410c", label="measured")
            axis.plot(at, [row.fitted for row in measured], "x", color="#3b4252", label="predicted by the fit")
            axis.legend(fontsize="small")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(lengths, [figure(n) for n in lengths], rotation=45, fontsize="small")
        axis.minorticks_off()
        axis.yaxis.set_major_formatter(lambda value, _, unit=unit: figure(value, unit))
        axis.grid(alpha=0.25)
    canvas.suptitle(title)
    canvas.savefig(path, dpi=150)
