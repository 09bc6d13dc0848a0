"""`headstart bench placement`: whether taking prefill and decode apart pays, by simulation."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from headstart.cli.bench.simulation import Ground, SimulationOptions, check_scheduler, ground, keep
from headstart.cli.options import with_options

if TYPE_CHECKING:
    from headstart.evaluation.load.settings import Slo
    from headstart.evaluation.simulate.placement import Goodput

_MEASURED = "measured"


@with_options
def placement(
    options: SimulationOptions,
    model: Annotated[
        str | None, typer.Argument(help="Checkpoint. [default: the built-in model]", show_default=False)
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="So many engines, each on its own device or cores.")] = 2,
    slo: Annotated[str, typer.Option(help="What nine of ten requests must meet, such as ttft=2,tpot=100ms.")] = (
        "ttft=2,tpot=200ms"
    ),
    use: Annotated[
        list[str] | None,
        typer.Option(help="Scheduler of replicas; may be repeated. [default: prefill-first, sarathi-serve]"),
    ] = None,
    link: Annotated[
        list[str] | None,
        typer.Option(
            help="Bytes per second between engines, as 5GB; may be repeated. [default: measured between two engines "
            "of this machine]"
        ),
    ] = None,
    latency_ms: Annotated[float, typer.Option(min=0, help="Before the first of them arrives.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Say whether prefill and decode should run apart, and how many engines each should have.

    One engine is measured here, and the link; replicas behind a router, and every split into prefill and decode, are
    then simulated with both. Goodput is the highest rate at which nine of ten requests meet both bounds.

        headstart bench placement --workers 2 --slo ttft=1,tpot=60ms
        headstart bench placement DIR --workers 4 --link 50GB --trace AzureLLMInferenceTrace_conv.csv.xz
    """
    from headstart.engine.tiers import read_size
    from headstart.evaluation.simulate.placement import placements, verdict

    bounds = read_bounds(slo)
    schedulers = use or ["prefill-first", "sarathi-serve"]
    for item in schedulers:
        check_scheduler(item)
    placements(workers, schedulers)
    named = {text: float(read_size(text)) for text in link or ()}
    options.threads = options.threads or 1
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with ground(model, options, console) as base:
        links = named or {_MEASURED: _measured_link(base, console)}
        found = {name: _simulate(base, workers, schedulers, bounds, speed, latency_ms) for name, speed in links.items()}
        _keep(found, links, base, slo, console)
    answers = {name: f"over {_shown(name, links[name])}, {verdict(items)}" for name, items in found.items()}
    if as_json:
        report = {
            name: {
                "bytes_per_second": links[name],
                "placements": [
                    asdict(item) | {"name": str(item.placement), "per_worker": item.per_worker} for item in items
                ],
                "verdict": answers[name],
            }
            for name, items in found.items()
        }
        typer.echo(json.dumps({"links": report, "median_error": base.error}, indent=2))
        return
    out = Console(highlight=False, soft_wrap=True)
    for name, items in found.items():
        out.print(_table(items), soft_wrap=False)
        out.print(f"does it pay? {answers[name]}", markup=False)


def read_bounds(slo: str) -> "Slo":
    """The two bounds of goodput.

    Raises:
        HeadstartError: others than these two.
    """
    from headstart.evaluation.capacity.search import CapacityError
    from headstart.evaluation.load.settings import Slo

    bounds = Slo.parse(slo)
    if bounds.ttft is None or bounds.tpot is None or len(bounds.bounds) > 2:
        raise CapacityError(f"goodput needs bounds for ttft and tpot, as ttft=2,tpot=100ms, not {slo!r}")
    return bounds


def token_bytes(base: Ground) -> int:
    """Bytes of keys and values per token."""
    from headstart.evaluation.plan.costs import ModelCosts, read_config

    return ModelCosts.of(*read_config(base.args.model), str(base.args.dtype)).kv_token_bytes


def _measured_link(base: Ground, console: Console) -> float:
    from headstart.evaluation.simulate.link import measure_link

    speed = measure_link(base.args.device)
    console.print(f"keys go from engine to engine at {speed / 1e9:.2f} GB/s here")
    return speed


def _simulate(
    base: Ground, workers: int, schedulers: list[str], bounds: "Slo", speed: float, latency_ms: float
) -> "list[Goodput]":
    """Every placement over one link, the best first."""
    from headstart.evaluation.simulate.placement import Cluster, choose, placements
    from headstart.evaluation.simulate.run import Link

    assert bounds.ttft is not None and bounds.tpot is not None
    cluster = Cluster(base.cost, base.worker, Link(speed, latency_ms / 1000, token_bytes(base)))
    options = placements(workers, schedulers)
    return choose(cluster, options, base.load, bounds.ttft, bounds.tpot, base.first_rate * workers)


def _shown(name: str, speed: float) -> str:
    return f"the measured link of {speed / 1e9:.3g} GB/s" if name == _MEASURED else f"a link of {name}/s"


def _table(found: "list[Goodput]") -> Table:
    table = Table(box=SIMPLE)
    for place, header in enumerate(("placement", "requests/s", "per worker", "within both", "keys on the link")):
        table.add_column(header, justify="left" if place == 0 else "right", no_wrap=True)
    for item in found:
        cells = [f"{item.rate:.3g}", f"{item.per_worker:.3g}", f"{item.attainment:.0%}", f"{item.transfer:.1%}"]
        table.add_row(str(item.placement), *cells)
    return table


def _keep(found: "dict[str, list[Goodput]]", links: dict[str, float], base: Ground, slo: str, console: Console) -> None:
    """Goodputs as ledger rows, and of each link the best split against the best replicas."""
    from headstart.evaluation.ledger import Ratio, Row
    from headstart.evaluation.simulate.placement import verdict

    rows, ratios, notes = [], [], []
    for name, items in found.items():
        where = _shown(name, links[name])
        mine = [
            Row.of(
                f"simulated goodput over {where}",
                str(item.placement),
                "requests/s",
                [item.rate],
                higher_is_better=True,
                details={"per_worker": item.per_worker, "within_both": item.attainment, "on_the_link": item.transfer},
            )
            for item in items
        ]
        apart = next((row for row, item in zip(mine, items, strict=True) if not item.placement.replicas), None)
        together = next((row for row, item in zip(mine, items, strict=True) if item.placement.replicas), None)
        if apart is not None and together is not None and together.median and apart.median:
            ratios.append(Ratio.of(apart, together))
        rows += mine
        notes.append(f"does it pay? over {where}, {verdict(items)}")
    uses = dict.fromkeys(item.placement.use for items in found.values() for item in items if item.placement.replicas)
    settings = {"slo": slo, "links": dict(links)}
    keep("placement", base, console, rows=rows, ratios=ratios, notes=notes, settings=settings, methods=[*uses])
