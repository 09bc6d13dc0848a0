"""`headstart bench ops`: every op against its reference and against what the machine allows."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from headstart.cli.bench.progress import RichReporter, command_line, end_on_sigterm, given, numbers, write_ledger
from headstart.cli.bench.show import print_entry


def ops(
    op: Annotated[
        list[str] | None,
        typer.Option(help="linear, epilogue, activation, norm, rotary, write, draw; may be repeated. [default: all]"),
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Sizes of the layer. [default: llama-3.1-8b on a GPU, else qwen2.5-0.5b]")
    ] = None,
    decode: Annotated[str | None, typer.Option(help="Rows of decode steps. [default: 1,16,64,256 on a GPU]")] = None,
    prefill: Annotated[str | None, typer.Option(help="Rows of prefills. [default: 2048 on a GPU]")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16 or float32. [default: bfloat16]")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. [default: a GPU if there is one]")] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Measurements of each. [default: 5]")] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Every tiling of the kernels as a side of its own.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny shape, nothing kept: some seconds to see that it works.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Of the inputs. [default: 0]")] = None,
    ledger: Annotated[
        Path | None, typer.Option(help="Ledger directory. [default: benchmarks/ledger of the checkout]")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Name of the ledger entry. [default: ops, or ops-quick]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ledger entry to stdout.")] = False,
) -> None:
    """Each op of a layer: its error against float64, its time, and the parts of this machine's peaks that it reaches.

    The peaks, of matrix products and of a copy, are measured in the same run. Inputs come from memory, not from a
    cache; on a GPU a CUDA graph launches them, as it does in a decode step.
    """
    from headstart.evaluation import ledger as ledgers
    from headstart.evaluation.ops_bench import OpsBenchSettings, run_ops_bench

    small = {"shape": "tiny", "decode": (1, 3), "prefill": (32,), "repeats": 2} if quick else {}
    asked = given(
        shape=shape,
        decode=numbers(decode, "decode"),
        prefill=numbers(prefill, "prefill"),
        ops=op,
        dtype=dtype,
        device=device,
        repeats=repeats,
        seed=seed,
    )
    settings = OpsBenchSettings(**{**small, **asked, "sweep": sweep})
    end_on_sigterm()
    with RichReporter(Console(stderr=True)) as reporter:
        entry = run_ops_bench(
            settings,
            reporter,
            command=command_line(),
            key=key or ("ops-quick" if quick else "ops"),
            effort="quick" if quick else "full",
        )
    if ledger or not quick:
        write_ledger(entry, ledger or ledgers.default_directory(), Console(stderr=True))
    print_entry(entry, Console(), as_json=as_json)
