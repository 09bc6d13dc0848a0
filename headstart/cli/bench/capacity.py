"""`headstart bench capacity`: the highest rate that each scheduler serves within targets for the tails."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from headstart.cli.bench.simulation import Ground, SimulationOptions, check_scheduler, ground, keep
from headstart.cli.options import with_options

if TYPE_CHECKING:
    from headstart.evaluation.capacity.search import CapacityFound, Probe, Targets

_SCHEDULERS = ("prefill-first", "orca", "sarathi", "sarathi-serve", "fastgen")


@with_options
def capacity(
    options: SimulationOptions,
    model: Annotated[
        str | None, typer.Argument(help="Checkpoint. [default: the built-in model]", show_default=False)
    ] = None,
    slo: Annotated[str, typer.Option(help="The 99th percentiles to meet, such as ttft=2,tbt=100ms.")] = (
        "ttft=2,tbt=200ms"
    ),
    use: Annotated[
        list[str] | None,
        typer.Option(help="Scheduler with its options; may be repeated. [default: all that mix or put off]"),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Also search on servers of this machine: minutes for each scheduler.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="New directory for every measured request.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Search for the highest rate at which 99% of first tokens and of gaps between tokens meet their targets.

    A cost model is fitted to measured steps of this machine; a simulation then drives the engine's own schedulers with
    it, at rate after rate. --measure repeats the search on real servers, from the simulated capacity on.

        headstart bench capacity --slo ttft=2,tbt=200ms
        headstart bench capacity DIR --trace AzureLLMInferenceTrace_conv.csv.xz --length-scale 0.25 --measure
    """
    from headstart.cli.bench_serve import new_directory
    from headstart.evaluation.capacity.search import Targets

    targets = Targets.parse(slo)
    schedulers = use or list(_SCHEDULERS)
    for item in schedulers:
        check_scheduler(item)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    directory = new_directory(out) if out is not None else None
    found: dict[str, dict[str, CapacityFound]] = {}
    with ground(model, options, console) as base:
        for item in schedulers:
            console.print(f"{item}: simulating", markup=False)
            found[item] = {"simulated": _simulate(item, base, targets)}
            if measure:
                begin = found[item]["simulated"].rate or base.first_rate / 8
                found[item]["measured"] = _measure(item, base, targets, begin, directory, console)
        _keep(found, base, slo, console)
    if as_json:
        report = {
            "slo": asdict(targets),
            "load": {
                "requests": len(base.load.asks),
                "longest": base.load.longest,
                "natural_rate": base.load.natural,
            },
            "cost": asdict(base.cost) | {"median_error": base.error},
            "schedulers": {
                name: {how: asdict(item) | {"sentence": item.sentence} for how, item in both.items()}
                for name, both in found.items()
            },
        }
        typer.echo(json.dumps(report, indent=2))
        return
    _print(found, base.error, Console(highlight=False, soft_wrap=True))


def _simulate(use: str, base: Ground, targets: "Targets") -> "CapacityFound":
    from headstart.evaluation.capacity.probes import simulated
    from headstart.evaluation.capacity.search import search

    probe = simulated(base.load, use, base.cost, base.worker)
    return search(probe, targets, base.first_rate, most=base.load.most_telling(targets.ttft), precision=1.02)


def _measure(
    use: str, base: Ground, targets: "Targets", start: float, directory: Path | None, console: Console
) -> "CapacityFound":
    """The same search on a server, which is started for it."""
    from headstart.cli.bench_serve import Display
    from headstart.evaluation.capacity.probes import measured
    from headstart.evaluation.capacity.search import search
    from headstart.evaluation.load.served import ServedModel

    folder = None if directory is None else directory / use.partition(":")[0]

    def heard(probe: "Probe", met: bool) -> None:
        verdict = "met" if met else "missed"
        console.print(
            f"{use} at {probe.rate:.3g}/s: p99 TTFT {probe.ttft:.3g} s, p99 TBT {1000 * probe.tbt:.3g} ms, {verdict}",
            markup=False,
        )

    # A lower rate takes as much longer, and the simulation is not wrong by that much.
    limits = {"most": base.load.most_telling(targets.ttft), "least": start / 8}
    with (
        ServedModel(base.server("--use", use), threads=base.options.threads) as served,
        Display(console) as display,
    ):
        probe = measured(base.load, served.url, targets, display, folder)
        return search(probe, targets, start, **limits, precision=1.1, heard=heard)


def _keep(found: "dict[str, dict[str, CapacityFound]]", base: Ground, slo: str, console: Console) -> None:
    """Capacities as ledger rows; the first scheduler is the baseline."""
    from headstart.evaluation.ledger import Ratio, Row

    rows, ratios, notes = [], [], []
    for how in dict.fromkeys(how for both in found.values() for how in both):
        name = "capacity" if how == "measured" else "simulated capacity"
        mine = []
        for use, both in found.items():
            best = both[how].best
            details = {} if best is None else {"ttft_p99": best.ttft, "tbt_p99": best.tbt, "tokens": best.output_rate}
            mine.append(Row.of(name, use, "requests/s", [both[how].rate], higher_is_better=True, details=details))
            notes.append(f"{use}, {how}: {both[how].sentence}")
        rows += mine
        ratios += [Ratio.of(row, mine[0]) for row in mine[1:] if row.median and mine[0].median]
    keep("capacity", base, console, rows=rows, ratios=ratios, notes=notes, settings={"slo": slo}, methods=list(found))


def _print(found: "dict[str, dict[str, CapacityFound]]", error: float, console: Console) -> None:
    table = Table(box=SIMPLE)
    for place, header in enumerate(("scheduler", "how", "requests/s", "p99 TTFT", "p99 TBT", "tokens/s")):
        table.add_column(header, justify="left" if place < 2 else "right", no_wrap=place > 0)
    for name, both in found.items():
        for how, item in both.items():
            best = item.best
            cells = ["none", "", "", ""]
            if best is not None:
                cells = [
                    f"{best.rate:.3g}",
                    f"{best.ttft:.3g} s",
                    f"{1000 * best.tbt:.3g} ms",
                    f"{best.output_rate:,.0f}",
                ]
            table.add_row(name, how, *cells)
    console.print(table, soft_wrap=False)
    for name, both in found.items():
        for how, item in both.items():
            console.print(f"{name}, {how}: {item.sentence}", markup=False)
    console.print(f"simulated with a cost model that is off by {error:.1%} on the median measured step", style="dim")
