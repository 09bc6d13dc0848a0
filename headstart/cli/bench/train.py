"""`headstart bench train`: training speed beside Transformers' Trainer."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from headstart.cli.bench import options
from headstart.cli.bench.progress import RichReporter, command_line, end_on_sigterm, numbers, write_ledger
from headstart.cli.bench.show import print_entry


def train(
    config: Annotated[
        Path | None,
        typer.Option(help="config.json, or a recipe with `model.config`. [default: that of the built-in model]"),
    ] = None,
    shards: Annotated[
        Path | None, typer.Option(help="Token shards to train on. [default: the text of the package]")
    ] = None,
    lengths: Annotated[str, typer.Option(help="Tokens of a row, parted by commas.")] = "2048,32768",
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an optimizer step.")] = 131_072,
    steps: Annotated[int, typer.Option(min=1, help="Steps that are timed in each round.")] = 20,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds, in which the sides take turns.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and data.")] = 0,
    ledger: options.CheckoutLedger = None,
    key: options.EntryName = "train",
    as_json: options.AsJson = False,
) -> None:
    """Tokens per second of this loop and of Transformers' Trainer, compiled, on the same network, rows and batch.

    Made for a GPU; on a CPU take a small network and short rows:

        headstart bench train --lengths 256 --batch-tokens 1024 --steps 3 --repeats 1
    """
    from headstart.evaluation import ledger as ledgers
    from headstart.evaluation.train_bench import TrainBenchSettings, run_train_bench

    settings = TrainBenchSettings(
        config=_config(config),
        shards=shards,
        lengths=numbers(lengths, "lengths") or (),
        batch_tokens=batch_tokens,
        steps=steps,
        repeats=repeats,
        seed=seed,
    )
    notes = Console(stderr=True)
    end_on_sigterm()
    with RichReporter(notes) as reporter:
        entry = run_train_bench(settings, reporter, command=command_line(), key=key)
    write_ledger(entry, ledger or ledgers.default_directory(), notes)
    print_entry(entry, Console(), as_json=as_json)


def _config(path: Path | None) -> dict[str, Any]:
    """The Hugging Face config in a file, by default that of the built-in model."""
    import yaml

    from headstart.checkpoints.default import default_checkpoint_path
    from headstart.evaluation.sides import BenchmarkError
    from headstart.strict_yaml import StrictLoader

    path = path or default_checkpoint_path() / "config.json"
    try:
        text = path.read_text()
        content = json.loads(text) if path.suffix == ".json" else yaml.load(text, StrictLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise BenchmarkError(f"the config {path} cannot be read: {' '.join(str(error).split())}") from None
    if isinstance(content, dict) and "phases" in content:
        content = (content.get("model") or {}).get("config")
    if not isinstance(content, dict) or "vocab_size" not in content:
        raise BenchmarkError(f"{path} is neither a config.json nor a recipe with model.config")
    return json.loads(json.dumps(content))
