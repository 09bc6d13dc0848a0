"""`headstart plan`: what a model costs on a device over the length of the context, and whether that is so here."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from headstart.evaluation.plan.costs import ModelCosts
    from headstart.evaluation.plan.devices import Device
    from headstart.evaluation.plan.effects import Effect
    from headstart.evaluation.plan.fit import Fit
    from headstart.methods.analysis.long_context_analysis import Quantities

_WIDTH = 110
_LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)


def plan(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Checkpoint directory, config.json or hub id. [default: the built-in model]", show_default=False
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="Device of the catalogue, or `list` to see it. [default: this machine, measured]"),
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="So many of them, weights and keys split.")] = 1,
    lengths: Annotated[
        str | None, typer.Option(help="Tokens of context, as 4096,50000. [default: powers of two up to the model's]")
    ] = None,
    output_len: Annotated[int, typer.Option(min=1, help="Tokens of the answer whose decode time is shown.")] = 250,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    memory: Annotated[str | None, typer.Option(help="Memory instead of the device's, as 24GB.")] = None,
    link: Annotated[str | None, typer.Option(help="Bytes per second to the host instead, as 20GB.")] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Run the engine here and compare the plan with it.")] = False,
    fit_lengths: Annotated[
        str | None, typer.Option(help="Contexts of the comparison. [default: three that suit the machine]")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of PyTorch, where this machine counts.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda:N, where this machine counts.")] = None,
    methods: Annotated[bool, typer.Option("--methods", help="What each method would change.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the plan to this .png or .svg.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as one JSON object.")] = False,
) -> None:
    """Plan a deployment: users, prefill, decode and switching over the length of the context, at peak hardware.

    Nothing is loaded and nothing is guessed: the numbers follow from the model's config and the device's peaks, and are
    bounds that real systems approach. With --fit this machine says how near.

        headstart plan DIR --gpu h100
        headstart plan config.json --gpu a100 --lengths 4000,50000 --link 20GB --methods
        headstart plan --fit --plot plan.png
    """
    from headstart.evaluation.plan.costs import ModelCosts, read_config
    from headstart.evaluation.plan.devices import PlanError, device_of
    from headstart.methods.analysis.long_context_analysis import LongContextAnalysis

    if gpu == "list":
        _print_catalogue(as_json)
        return
    if gpu is not None and fit:
        raise PlanError("--fit compares with runs on this machine; leave out --gpu")
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise PlanError(f"a picture is a .png or an .svg, not {plot.name!r}")
    config, name = read_config(model)
    costs = ModelCosts.of(config, name, dtype)
    chosen = _lengths(lengths, costs)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    threads, runs_on = _here(threads, device)
    target = device_of(gpu) if gpu is not None else _measure(runs_on, threads, console)
    target = _changed(target, memory, link)
    analysis = LongContextAnalysis(devices)
    rows = [analysis.at(costs, target, n) for n in chosen]
    found = _fit(model, costs, target, fit_lengths, threads, runs_on, dtype, console) if fit else None
    changed = _effects(config, costs, target, chosen[-1]) if methods else None
    if plot is not None:
        from headstart.evaluation.plan.plot import plot_plan

        plot_plan(rows, f"{name} on {target.name}", plot, found)
        console.print(f"written to {plot}", markup=False)
    if as_json:
        typer.echo(json.dumps(_as_json(costs, target, devices, rows, found, changed), indent=2))
        return
    out = _console()
    _print_plan(costs, target, devices, rows, output_len, out)
    if changed is not None:
        _print_effects(changed, chosen[-1], out)
    if found is not None:
        _print_fit(found, out)


def _here(threads: int | None, device: str | None) -> tuple[int, str]:
    """Threads and device of this machine."""
    from headstart.engine.args import EngineArgs
    from headstart.evaluation.machine import usable_cores

    return threads or usable_cores(), EngineArgs(device=device or "auto").device


def _measure(device: str, threads: int, console: Console) -> "Device":
    from headstart.evaluation.plan.devices import this_machine

    console.print("measuring this machine's peaks")
    return this_machine(device, threads)


def _changed(target: "Device", memory: str | None, link: str | None) -> "Device":
    """The device with what the user knows better."""
    from dataclasses import replace

    from headstart.engine.tiers import read_size

    if memory is not None:
        target = replace(target, memory=float(read_size(memory)))
    if link is not None:
        target = replace(target, link=float(read_size(link)))
    return target


def _lengths(text: str | None, costs: "ModelCosts") -> tuple[int, ...]:
    """As asked for, or powers of two up to what the model can tell apart."""
    from headstart.cli.bench.progress import numbers
    from headstart.evaluation.plan.devices import PlanError

    found = tuple(sorted(set(numbers(text, "lengths"))))
    if found and found[-1] > costs.max_length:
        raise PlanError(
            f"{costs.name} can tell {costs.max_length:,} positions apart, fewer than the {found[-1]:,} asked for; "
            "ask for shorter --lengths"
        )
    usual = tuple(n for n in _LENGTHS if n <= costs.max_length)
    return found or usual or (costs.max_length,)


def _fit(
    model: str | None,
    costs: "ModelCosts",
    target: "Device",
    lengths: str | None,
    threads: int,
    device: str,
    dtype: str,
    console: Console,
) -> "Fit":
    """Run the engine and compare."""
    import torch

    from headstart.cli.bench.progress import numbers
    from headstart.engine.args import EngineArgs
    from headstart.engine.engine import Engine
    from headstart.evaluation.plan.fit import fit

    torch.set_num_threads(threads)
    usual = (1024, 4096, 16384) if device.startswith("cuda") else (512, 1024, 2048)
    chosen = numbers(lengths, "fit-lengths") or tuple(n for n in usual if n < costs.max_length - 32)
    longest = min(max(chosen) + 64, costs.max_length)
    args = EngineArgs(
        model=model,
        dtype=dtype,
        device=device,
        max_model_len=longest,
        max_num_seqs=2,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
    )
    return fit(Engine(args), costs, target, sorted(chosen), lambda text: console.print(text))


def _effects(config: Any, costs: "ModelCosts", target: "Device", length: int) -> "list[Effect]":
    from headstart.cli.methods import measurements
    from headstart.evaluation.plan.effects import effects

    entries = [entry for found in measurements().values() for entry in found]
    return effects(config, costs, target, length, entries)


def _as_json(
    costs: "ModelCosts",
    target: "Device",
    devices: int,
    rows: "list[Quantities]",
    found: "Fit | None",
    changed: "list[Effect] | None",
) -> dict[str, Any]:
    model = {
        "name": costs.name,
        "parameters": costs.parameters,
        "weight_bytes": costs.weight_bytes,
        "kv_token_bytes": costs.kv_token_bytes,
        "dtype": costs.dtype,
    }
    plan = {"model": model, "device": asdict(target), "devices": devices, "lengths": [asdict(row) for row in rows]}
    if changed is not None:
        plan["methods"] = [asdict(item) for item in changed]
    if found is not None:
        fitted = [asdict(row) | {"error": row.error, "of_peak": row.of_peak} for row in found.rows]
        plan["fit"] = {"efficiency": asdict(found.efficiency), "rows": fitted, "worst": found.worst}
    return plan


def _print_catalogue(as_json: bool) -> None:
    from headstart.evaluation.plan.devices import DEVICES

    if as_json:
        typer.echo(json.dumps([asdict(item) for item in DEVICES.values()], indent=2))
        return
    table = _table("", "memory", "TFLOP/s bfloat16", "float32", "GB/s", "GB/s to the host", "name and source")
    for item in DEVICES.values():
        table.add_row(
            item.key,
            f"{item.memory / 1e9:.0f} GB",
            f"{item.flops['bfloat16'] / 1e12:.3g}",
            f"{item.flops['float32'] / 1e12:.3g}",
            f"{item.bandwidth / 1e9:.4g}",
            "-" if item.link is None else f"{item.link / 1e9:.0f}",
            f"{item.name}: {item.source}",
        )
    _console().print(table)


def _console() -> Console:
    """Wide enough for the tables where no terminal says otherwise."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDTH)


def _table(*headers: str) -> Table:
    from rich.box import SIMPLE

    table = Table(box=SIMPLE)
    for place, header in enumerate(headers):
        words = "source" in header
        table.add_column(header, justify="left" if place == 0 or words else "right", no_wrap=not words)
    return table


def _print_plan(
    costs: "ModelCosts", target: "Device", devices: int, rows: "list[Quantities]", output: int, console: Console
) -> None:
    from headstart.evaluation.report_tables import figure

    times = f"{devices} x " if devices > 1 else ""
    console.print(
        f"{costs.name}: {costs.parameters:,} parameters, {costs.weight_bytes:,} bytes in {costs.dtype}, "
        f"{costs.kv_token_bytes:,} bytes of keys and values per token",
        markup=False,
    )
    console.print(
        f"{times}{target.name}: {target.memory:,.0f} bytes, {figure(target.peak(costs.dtype) / 1e12)} TFLOP/s, "
        f"{figure(target.bandwidth / 1e9)} GB/s ({target.source})",
        markup=False,
    )
    table = _table(
        "context", "KV per user", "users", "prefill", "of it attention", f"{output} tokens", "all users", "switch"
    )
    for row in rows:
        table.add_row(
            f"{row.length:,}",
            figure(row.kv_bytes, "bytes"),
            f"{row.users:,}" if row.users > 0 else "none fits",
            figure(row.prefill, "s"),
            f"{row.attention_share:.0%}",
            figure(row.decode * output, "s"),
            figure(row.decode_all * output, "s") if row.users > 0 else "-",
            "-" if row.switch is None else figure(row.switch, "s"),
        )
    console.print(table)
    if devices * target.memory < costs.weight_bytes:
        needed = -(-costs.weight_bytes // int(target.memory))
        console.print(f"the weights alone do not fit: they need {needed} of these devices")
    console.print(
        "bounds at peak: real systems take longer. Users: what memory holds beside the weights, with no reserve; all "
        f"users: the same {output} tokens when all of them write at once; switch: one user's keys out, another's in.",
        style="dim",
    )


def _print_effects(changed: "list[Effect]", length: int, console: Console) -> None:
    table = _table(f"at {length:,} tokens", "prefill", "KV", "decode", "source")
    for item in changed:
        cells = ["?" if value is None else f"{value:.2f}x" for value in (item.prefill, item.kv, item.decode)]
        table.add_row(item.key, *cells, item.source)
    console.print(table)


def _print_fit(found: "Fit", console: Console) -> None:
    from headstart.evaluation.report_tables import figure

    table = _table("", "context", "at peak", "predicted", "measured", "error", "of peak")
    for row in found.rows:
        table.add_row(
            row.what,
            f"{row.length:,}",
            *(figure(value, "s") for value in (row.peak, row.fitted, row.measured)),
            f"{row.error:+.1%}",
            f"{row.of_peak:.0%}",
        )
    console.print(table)
    console.print(
        f"predicted with efficiencies that were fitted at other lengths; the worst error is {found.worst:.1%}",
        style="dim",
    )
