"""`headstart train`: carry out a recipe, go on with one that was stopped, or say what it would take."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from headstart.training.dry_run import DryRun

Dtype = Literal["bfloat16", "float16", "float32"]


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file: model, phases, data.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[A.B=C]...",
            help="Values instead of the recipe's: seed=3, phases.NAME.optimizer.lr=1e-3.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the run. [default: runs/NAME, with the recipe's name]")
    ] = None,
    use: Annotated[
        list[str] | None,
        typer.Option(
            "--use",
            metavar="METHOD",
            help="Training method for every phase, as KEY or KEY:option=value,...; may be repeated.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take two steps of every phase, and print what the whole would take.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. [default: cuda where there is one]")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard files too.")] = False,
    export_dtype: Annotated[Dtype, typer.Option(help="Of the exported weights.")] = "bfloat16",
) -> None:
    """Train a model as a recipe says.

    The run's directory gets the resolved recipe, metrics.jsonl, metrics.png, checkpoints, and at the end the model.
    A run that was stopped, by Ctrl-C, SIGTERM or worse, goes on when the same command is given again.
    Under torchrun the weights are shared out over its processes.

        headstart train recipe.yaml --dry-run
        headstart train recipe.yaml seed=3 phases.main.tokens=20M --out runs/short
        torchrun --nproc-per-node 2 -m headstart.cli.main train recipe.yaml
    """
    import torch

    from headstart.training.dry_run import dry_run as try_out
    from headstart.training.loop import Interrupted
    from headstart.training.recipe import read_recipe
    from headstart.training.run import RunOptions
    from headstart.training.run import train as carry_out

    wanted = read_recipe(recipe, tuple(overrides or ()), tuple(use or ()))
    options = RunOptions(
        out or Path("runs") / wanted.name,
        recipe.absolute().parent,
        device,
        tensorboard,
        getattr(torch, export_dtype),
        Console(stderr=True),
    )
    if dry_run:
        _print_costs(try_out(wanted, options), Console())
        return
    try:
        model = carry_out(recipe, options, tuple(overrides or ()), tuple(use or ()))
    except Interrupted as stopped:
        Console(stderr=True).print(f"headstart: {stopped}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None
    if os.environ.get("RANK", "0") == "0":
        print(model)


def _print_costs(costs: "DryRun", console: Console) -> None:
    seconds = sum(phase.tokens / phase.tokens_per_second for phase in costs.phases)
    lines = {
        "weights": f"{costs.parameters:,}, {costs.trained:,} of them trained",
        "memory": f"{_size(costs.weight_bytes)} weights, {_size(costs.gradient_bytes)} gradients, "
        f"{_size(costs.optimizer_bytes)} optimizer"
        + ("" if costs.peak_bytes is None else f"; {_size(costs.peak_bytes)} at most on the GPU"),
        "steps": f"{sum(phase.steps for phase in costs.phases):,}",
        "tokens": f"{sum(phase.tokens for phase in costs.phases):,}",
        "FLOPs": f"{sum(phase.flops for phase in costs.phases):.3g} at most",
        "time": f"{_duration(seconds)} at the pace of the second steps",
    }
    for name, text in lines.items():
        console.print(f"{name:<12} {text}", highlight=False, soft_wrap=True)
    for name, shapes in costs.selected.items():
        text = ", ".join(f"{shape} ×{count}" if count > 1 else shape for shape, count in shapes.items()) or "none"
        console.print(f"{name:<12} {text}", highlight=False, markup=False, soft_wrap=True)
    table = Table("phase", "steps", "tokens", "FLOPs", "loss", "tokens/s", "epochs of its sources", box=None)
    for phase in costs.phases:
        epochs = ", ".join(f"{name} {count:.2f}" for name, count in phase.epochs.items())
        numbers = (f"{phase.steps:,}", f"{phase.tokens:,}", f"{phase.flops:.3g}", f"{phase.loss:.4f}")
        table.add_row(phase.name, *numbers, f"{phase.tokens_per_second:,.0f}", epochs)
    console.print(table)


def _size(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.4g} {unit}"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.1f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
