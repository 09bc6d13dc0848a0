"""`headstart bench engine`: this engine beside Transformers and llama.cpp."""

from typing import Annotated

import typer
from rich.console import Console

from headstart.cli.bench import options
from headstart.cli.bench.progress import RichReporter, command_line, end_on_sigterm, given, write_ledger
from headstart.cli.bench.show import print_entry
from headstart.errors import HeadstartError


def engine(
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny shape, short lengths, nothing kept: a minute to see that it works.")
    ] = False,
    repeats: Annotated[int | None, typer.Option(help="Rounds that count, after a warm-up. [default: 3]")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of every side. [default: all cores]")] = None,
    shape: Annotated[
        str | None, typer.Option(help="Sizes of the random Llama: qwen2.5-0.5b, llama-3.1-8b or tiny.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, or cuda: weights are then drawn on the device. [default: cpu]")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16 or float32. [default: bfloat16]")] = None,
    prefill: Annotated[
        list[int] | None,
        typer.Option(help="Prompt length to prefill; may be repeated. [default: 2048, 8192]"),
    ] = None,
    decode_context: Annotated[int | None, typer.Option(help="Prompt length before the decode. [default: 2048]")] = None,
    decode_tokens: Annotated[int | None, typer.Option(help="Tokens decoded. [default: 32]")] = None,
    decode_batch: Annotated[
        list[str] | None,
        typer.Option(metavar="NxC", help="Sequences and context of a further decode, as 64x4096; may be repeated."),
    ] = None,
    requests: Annotated[int | None, typer.Option(help="Concurrent requests. [default: 32]")] = None,
    request_in: Annotated[int | None, typer.Option(help="Prompt length of each. [default: 128]")] = None,
    request_out: Annotated[int | None, typer.Option(help="Output length of each. [default: 64]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights and prompts. [default: 0]")] = None,
    side: Annotated[
        list[str] | None,
        typer.Option(help="headstart, transformers or llama.cpp; may be repeated. [default: all installed]"),
    ] = None,
    use: Annotated[
        list[str] | None,
        typer.Option(help="Method for this engine, as `headstart serve --use`; may be repeated."),
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(help="Token budget of a step of this engine. [default: the engine's]")
    ] = None,
    ledger: options.CheckoutLedger = None,
    key: Annotated[
        str | None, typer.Option(help="Name of the ledger entry. [default: engine, or engine-quick]")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Prefill, decode and concurrent requests beside Transformers and llama.cpp, in one run.

    Every side loads the same random Llama of Qwen2.5-0.5B's shape in a process of its own; the sides take
    turns. The report gives medians with their spread, the ratios, and the part of this machine's measured
    matmul peak and copy bandwidth that was reached. Leave the machine alone meanwhile.
    """
    from headstart.evaluation import ledger as ledgers
    from headstart.evaluation.engine_bench import run_engine_bench
    from headstart.evaluation.engine_plan import EngineBenchSettings
    from headstart.evaluation.machine import usable_cores

    asked = given(
        repeats=repeats,
        shape=shape,
        device=device,
        decode_batches=tuple(_batch(text) for text in decode_batch) if decode_batch else None,
        dtype=dtype,
        prefill=prefill,
        decode_context=decode_context,
        decode_tokens=decode_tokens,
        requests=requests,
        request_in=request_in,
        request_out=request_out,
        seed=seed,
        sides=side,
        engine_options={**given(use=use), **given(max_num_batched_tokens=max_num_batched_tokens)} or None,
    )
    make = EngineBenchSettings.quick if quick else EngineBenchSettings
    settings = make(threads=threads or usable_cores(), **asked)
    key = key or ("engine-quick" if quick else "engine")
    end_on_sigterm()
    with RichReporter(Console(stderr=True)) as reporter:
        entry = run_engine_bench(settings, reporter, command=command_line(), key=key, quick=quick)
    # First, so that what took minutes is kept whatever becomes of the rest.
    if ledger or not quick:
        write_ledger(entry, ledger or ledgers.default_directory(), Console(stderr=True))
    print_entry(entry, Console(), as_json=as_json)


def _batch(text: str) -> tuple[int, int]:
    """`64x4096` as (64, 4096)."""
    sequences, _, context = text.partition("x")
    if not (sequences.isdecimal() and context.isdecimal() and int(sequences) and int(context)):
        raise HeadstartError(f"--decode-batch is sequences x context, as 64x4096, not {text!r}")
    return int(sequences), int(context)
