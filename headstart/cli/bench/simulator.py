"""`headstart bench simulator`: whether the simulator that the other benches trust tells the truth here."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from headstart.cli.bench.placement import read_bounds, token_bytes
from headstart.cli.bench.simulation import Ground, SimulationOptions, check_scheduler, ground, keep
from headstart.cli.options import with_options

if TYPE_CHECKING:
    from headstart.evaluation.simulate.validate import Check

_ALLOWED = 0.15


@with_options
def simulator(
    options: SimulationOptions,
    model: Annotated[
        str | None, typer.Argument(help="Checkpoint. [default: the built-in model]", show_default=False)
    ] = None,
    use: Annotated[str, typer.Option(help="Scheduler of the engine or the replicas.")] = "sarathi-serve",
    replicas: Annotated[int, typer.Option(min=1, help="So many engines behind a router.")] = 1,
    disaggregate: Annotated[
        str | None, typer.Option(metavar="PARTS", help="Instead: prefill=N,decode=M, as `serve` takes it.")
    ] = None,
    slo: Annotated[
        str | None,
        typer.Option(help="Bounds, as ttft=2,tpot=100ms. [default: three times what a quiet server gives]"),
    ] = None,
    rates: Annotated[
        str | None, typer.Option(help="Requests per second, parted by commas. [default: three around the capacity]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Put a load on real engines at three rates, and on the simulator: goodput of both, and the error.

    The engine's steps are measured first, as for the other benches. Goodput is requests per second that meet both
    bounds. Nothing else should run on the machine meanwhile.

        headstart bench simulator --requests 100
        headstart bench simulator --disaggregate prefill=1,decode=1 --threads 1
    """
    from headstart.cli.bench_serve import Display
    from headstart.cluster.launch import Disaggregation
    from headstart.evaluation.load.served import ServedModel
    from headstart.evaluation.simulate.link import measure_link
    from headstart.evaluation.simulate.placement import Cluster, Placement, goodput
    from headstart.evaluation.simulate.run import Link
    from headstart.evaluation.simulate.validate import SHARES, bounds_of, validate

    check_scheduler(use)
    bounds = None if slo is None else read_bounds(slo)
    asked = None if rates is None else _rates(rates)
    placement, serve = Placement(replicas=replicas, use=use), ["--use", use]
    if disaggregate is not None:
        parts = Disaggregation.parse(disaggregate)
        placement, serve = Placement(prefill=parts.prefill, decode=parts.decode), ["--disaggregate", disaggregate]
    elif replicas > 1:
        serve += ["--replicas", str(replicas)]
    options.threads = options.threads or 1
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with ground(model, options, console) as base:
        link = Link(measure_link(base.args.device), 1e-3, token_bytes(base))
        cluster = Cluster(base.cost, base.worker, link)
        bounds = bounds or bounds_of(cluster, placement, base.load, base.first_rate / 20)
        assert bounds.ttft is not None and bounds.tpot is not None
        start = base.first_rate * placement.workers
        best = goodput(cluster, placement, base.load, bounds.ttft, bounds.tpot, start).rate or start
        chosen = asked or [float(f"{share * best:.3g}") for share in SHARES]
        console.print(f"{placement} under {bounds}: simulated goodput {best:.3g} requests per second", markup=False)
        with (
            ServedModel(base.server(*serve), threads=options.threads) as served,
            Display(console) as display,
        ):
            found = list(validate(cluster, placement, base.load, bounds, chosen, served.url, display))
        _keep(found, str(placement), str(bounds), base, console, use)
    if as_json:
        report = [asdict(check) | {"error": check.error} for check in found]
        typer.echo(json.dumps({"placement": str(placement), "slo": str(bounds), "checks": report}, indent=2))
        return
    _print(found, Console(highlight=False, soft_wrap=True))


def _rates(text: str) -> list[float]:
    from headstart.evaluation.simulate.cost import SimulationError

    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [0.0]
    if not all(0 < rate < float("inf") for rate in found):
        raise SimulationError(f"rates are numbers above 0 with commas, as 1,2,4, not {text!r}")
    return found


def _sentence(found: "list[Check]") -> str:
    worst = max(check.error for check in found)
    verdict = "within" if worst <= _ALLOWED else "beyond"
    return f"the simulator is off by at most {worst:.1%}, {verdict} the {_ALLOWED:.0%} that are allowed"


def _print(found: "list[Check]", console: Console) -> None:
    table = Table(box=SIMPLE)
    for header in ("requests/s", "measured goodput", "simulated", "error", "within both", "simulated"):
        table.add_column(header, justify="right")
    for check in found:
        shares = (f"{share:.0%}" for share in check.met)
        goodputs = (f"{value:.3g}" for value in (check.rate, check.measured, check.simulated))
        table.add_row(*goodputs, f"{check.error:.1%}", *shares)
    console.print(table, soft_wrap=False)
    console.print(_sentence(found), markup=False)


def _keep(found: "list[Check]", placement: str, bounds: str, base: Ground, console: Console, use: str) -> None:
    from headstart.evaluation.ledger import Row

    rows = [
        Row.of(
            f"goodput of {placement} at {check.rate:g}/s",
            side,
            "requests/s",
            [value],
            higher_is_better=True,
            details={"within_both": share},
        )
        for check in found
        for side, value, share in zip(
            ("measured", "simulated"), (check.measured, check.simulated), check.met, strict=True
        )
    ]
    keep(
        "simulator",
        base,
        console,
        rows=rows,
        notes=[_sentence(found)],
        settings={"placement": placement, "slo": bounds},
        methods=[use],
    )
