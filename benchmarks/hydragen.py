"""What hydragen brings on this machine's GPU: decode attention and whole decode steps over a shared prefix.

    python benchmarks/hydragen.py --out hydragen.json

First one layer's attention with 32 query and 8 KV heads of 128 in bfloat16: over one stored prefix as the plain engine
reads it, over a copy of the prefix for each sequence, and shared; then the same at small batches, where sharing stops
to pay. Then decode steps of a random Llama-3.1-8B, beside steps without any attention. Each figure is printed as it
comes. The file is a ledger entry, which `--ledger` puts among the others.
"""

import argparse
import gc
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstart.checkpoints.reader import Checkpoint, load_checkpoint
from headstart.engine.args import EngineArgs
from headstart.engine.engine import Engine
from headstart.engine.params import SamplingParams
from headstart.engine.seams import Attention
from headstart.evaluation import ledger
from headstart.evaluation.attention_bench import HEAD_DIM, HEADS, KV_HEADS, captured_seconds
from headstart.evaluation.ledger import LedgerEntry, Ratio, Row
from headstart.evaluation.ledger_sources import source_digests
from headstart.evaluation.machine import describe_machine
from headstart.evaluation.random_checkpoint import write_config
from headstart.evaluation.shape import SHAPES
from headstart.methods.decode.hydragen.buffers import Buffers
from headstart.methods.decode.hydragen.hydragen import Hydragen
from headstart.methods.decode.hydragen.plan import Plan
from headstart.methods.decode.hydragen.sharing import Costs
from headstart.methods.registry import MethodCard
from headstart.ops.attention import PagedIndex, RaggedLayout, paged_attention, shared_attention
from headstart.ops.attention.shape import Shape

PAGE, SUFFIX, SCALE = 64, 128, HEAD_DIM**-0.5
ROUNDS = 3
TRIED = (
    Shape(64, 64, 4, 3, tensor_maps=True),
    Shape(64, 64, 4, 3, tensor_maps=True, waves=4),
    Shape(64, 64, 4, 3, tensor_maps=True, behind=True),
    Shape(128, 64, 8, 3, tensor_maps=True),
    Shape(128, 64, 4, 3, tensor_maps=True),
    Shape(128, 128, 8, 2, tensor_maps=True),
)
PLAIN, COPIES, SHARED, NOTHING = "exact", "exact, a copy each", "hydragen", "no attention"


class Notes:
    """Rows and ratios as they come."""

    def __init__(self, seconds: float) -> None:
        self.begun, self.seconds = time.perf_counter(), seconds
        self.rows: list[Row] = []
        self.ratios: list[Ratio] = []
        self.notes: list[str] = []

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.begun

    def say(self, text: str) -> None:
        """Print a line with the time."""
        print(f"[{self.spent:5.1f} s] {text}", flush=True)

    def row(self, name: str, side: str, unit: str, values: list[float], **named: Any) -> Row:
        """Keep and print a quantity."""
        row = Row.of(name, side, unit, values, **named)
        self.rows.append(row)
        self.say(f"{name}, {side}: {row.median:.4g} {unit} ({row.spread[0]:.4g} to {row.spread[1]:.4g})")
        return row

    def ratio(self, side: Row, against: Row, target: float | None = None) -> None:
        """Keep and print how many times better a side is."""
        ratio = Ratio.of(side, against, target=target)
        self.ratios.append(ratio)
        self.say(f"    {side.side} is {ratio.value:.2f} times better than {against.side}")


def tables(batch: int, prefix: int) -> tuple[RaggedLayout, int]:
    """A decode step of sequences that share a prefix and have a suffix each, and the pages of its pool."""
    shared, own = prefix // PAGE, -(-SUFFIX // PAGE)
    generator = torch.Generator().manual_seed(0)
    scattered = (shared + torch.randperm(batch * own, generator=generator)).view(batch, own).tolist()
    lists = [[*range(shared), *mine] for mine in scattered]
    return RaggedLayout([1] * batch, [prefix + SUFFIX] * batch, lists, PAGE, "cuda"), shared + batch * own


def pool(pages: int) -> tuple[Tensor, Tensor]:
    """Random keys and values."""
    k, v = (torch.randn(pages, PAGE, KV_HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return k, v


def timed(run: Callable[[], Any], repeats: int = ROUNDS) -> list[float]:
    """Microseconds of a run as a graph, so that the host's part is left out, several times."""
    return [captured_seconds([run] * 8, repeats=3) * 1e6 for _ in range(repeats)]


def attention(notes: Notes, batch: int, prefix: int, thorough: bool) -> None:
    """One layer of a decode step."""
    where = f"attention of a layer, {batch} sequences, prefix {prefix:,}"
    layout, pages = tables(batch, prefix)
    k, v = pool(pages)
    q = torch.randn(batch, HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
    plan = Plan.make(layout, layout.table, Costs(PAGE, 3, 1, 0))
    parts = plan.parts(layout)
    rule = {"higher_is_better": False, "metric": "attention of a layer", "length": prefix}

    def plain() -> tuple[Tensor, Tensor]:
        return paged_attention(q, k, v, layout, scale=SCALE)

    def shared() -> tuple[Tensor, Tensor]:
        return shared_attention(q, k, v, parts, scale=SCALE)

    gap = (plain()[0].float() - shared()[0].float()).abs().max().item()
    wide = shared_attention(q.float(), k.float(), v.float(), parts, scale=SCALE)[0] if thorough else None
    exact = paged_attention(q.float(), k.float(), v.float(), layout, scale=SCALE)[0] if thorough else None
    notes.say(f"{where}: largest difference {gap:.2e} in bfloat16")
    if wide is not None and exact is not None:
        notes.say(f"{where}: largest difference {(wide - exact).abs().max().item():.2e} in float32")
    before = notes.row(where, PLAIN, "us", timed(plain), **rule)
    after = notes.row(where, SHARED, "us", timed(shared), **rule)
    notes.ratio(after, before)
    if not thorough:
        return
    held = captured(layout, plan)
    replayed = notes.row(where, f"{SHARED}, in room for any plan", "us", timed(lambda: held(q, k, v)), **rule)
    notes.ratio(replayed, before)
    flops = 4.0 * batch * prefix * HEADS * HEAD_DIM
    rows = q.index_select(0, parts.rows)
    for shape in (None, *TRIED):
        given: dict[str, Any] = {"causal": False, "dtype": torch.float32, "shape": shape}
        try:
            taken = timed(lambda given=given: paged_attention(rows, k, v, parts.segments, scale=SCALE, **given), 1)[0]
        except Exception as error:
            notes.say(f"    the prefix alone in {shape}: {type(error).__name__}: {str(error)[:120]}")
            continue
        notes.say(
            f"    the prefix alone in {shape or 'the usual shape'}: {taken:.1f} us, {flops / taken / 1e6:.0f} TFLOP/s"
        )
    copies(notes, where, q, batch, prefix, after, rule)


def captured(layout: RaggedLayout, plan: Plan) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The shared attention as captured decode steps run it."""
    index = layout.index
    wide = torch.zeros(index.kv_lengths.shape[0], 512, dtype=torch.int32, device="cuda")
    buffers = PagedIndex(index.query_starts, torch.zeros_like(index.kv_lengths), wide, 1, 512 * PAGE)
    held = RaggedLayout.of_index(buffers, torch.zeros(layout.num_rows, dtype=torch.int64, device="cuda"), PAGE)
    room = Buffers(held, 3)
    parts = room.parts(held)
    room.fill(plan, layout, layout.num_rows)
    return lambda q, k, v: shared_attention(q, k, v, parts, scale=SCALE)


def copies(notes: Notes, where: str, q: Tensor, batch: int, prefix: int, after: Row, rule: dict[str, Any]) -> None:
    """The plain attention over a prefix of its own for each sequence, where it fits."""
    each = -(-(prefix + SUFFIX) // PAGE)
    if batch * each * PAGE * KV_HEADS * HEAD_DIM * 4 > 0.6 * torch.cuda.mem_get_info()[0]:
        notes.say(f"{where}: copies do not fit")
        return
    k, v = pool(batch * each)
    layout = RaggedLayout(
        [1] * batch, [prefix + SUFFIX] * batch, torch.arange(batch * each).view(batch, each).tolist(), PAGE, "cuda"
    )
    row = notes.row(where, COPIES, "us", timed(lambda: paged_attention(q, k, v, layout, scale=SCALE), 3), **rule)
    notes.ratio(after, row)


class Nothing(Attention):
    """No attention at all: the ceiling."""

    slots = ("attention.decode",)
    capturable = True
    card = MethodCard("no-attention", "decode", None, slots=("attention.decode",))

    def attend(self, spec: Any, q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(q, memory_format=torch.contiguous_format), q.new_zeros(q.shape[:2], dtype=torch.float32)


def steps(notes: Notes, checkpoint: Checkpoint, args: argparse.Namespace) -> None:
    """Whole decode steps, tokens per second."""
    found: dict[tuple[str, int], Row] = {}
    for side, use in ((SHARED, [Hydragen()]), (PLAIN, []), (NOTHING, [Nothing()])):
        if notes.spent > notes.seconds:
            notes.say(f"no time is left for decode steps of {side}")
            continue
        engine = Engine(_engine_args(args, use), checkpoint)
        notes.say(f"engine of {side} is ready")
        for prefix in args.prefix:
            name = f"decode, {args.batch} sequences, prefix {prefix:,}"
            values = list(_decode(engine, checkpoint.config.vocab_size, args, prefix))
            found[side, prefix] = notes.row(
                name, side, "tokens/s", values, higher_is_better=True, metric="decode", length=prefix
            )
        notes.say(f"counters: {engine.stats().methods}")
        engine.close()
        del engine
        gc.collect()
        torch.cuda.empty_cache()
    for prefix in args.prefix:
        for other, target in ((PLAIN, 10.0 if prefix == max(args.prefix) else None), (NOTHING, None)):
            if (SHARED, prefix) in found and (other, prefix) in found:
                notes.ratio(found[SHARED, prefix], found[other, prefix], target)
    ends = [found.get((SHARED, prefix)) for prefix in (min(args.prefix), max(args.prefix))]
    if ends[0] is not None and ends[1] is not None and ends[0] is not ends[1]:
        loss = 1 - ends[1].median / ends[0].median
        notes.notes.append(
            f"from a shared prefix of {min(args.prefix):,} to one of {max(args.prefix):,} hydragen's throughput falls "
            f"by {100 * loss:.1f}%"
        )
        notes.say(notes.notes[-1])


def _engine_args(args: argparse.Namespace, use: list[Any]) -> EngineArgs:
    """Room for the prefixes and all sequences."""
    longest = max(args.prefix) + 2 * SUFFIX + 64
    pages = sum(args.prefix) // PAGE + len(args.prefix) * args.batch * (2 * SUFFIX // PAGE + 1) + 64
    return EngineArgs(
        device="cuda",
        use=use,
        max_model_len=longest,
        max_num_seqs=args.batch,
        num_pages=pages,
        skip_tokenizer_init=True,
    )


def _decode(engine: Engine, vocab: int, args: argparse.Namespace, prefix: int) -> Iterator[float]:
    """Tokens per second around a suffix of 128 tokens, in several windows of steps of one batch."""
    random = np.random.default_rng(prefix)
    text = random.integers(vocab // 16, vocab, prefix).tolist()
    window, tail = args.steps, SUFFIX - 2 * args.steps
    ids = [text + random.integers(vocab // 16, vocab, tail).tolist() for _ in range(args.batch)]
    params = SamplingParams(
        max_tokens=16 + ROUNDS * (window + 1), temperature=0, ignore_eos=True, detokenize=False, output_kind="final"
    )
    engine.submit(engine.prepare(f"{prefix}", {"prompt_token_ids": [*text, 1]}, replace(params, max_tokens=1)))
    while engine.has_work:
        engine.step()
    for number, prompt in enumerate(ids):
        engine.submit(engine.prepare(f"{prefix}-{number}", {"prompt_token_ids": prompt}, params))
    sequences = [request.sequences[0] for request in engine.requests.values()]
    while not all(sequence.num_output for sequence in sequences):
        engine.step()
    for _ in range(ROUNDS):
        if not engine.has_work or len(engine.requests) < args.batch:
            break
        engine.step()
        torch.cuda.synchronize()
        said, began = sum(sequence.num_output for sequence in sequences), time.perf_counter()
        for _ in range(window):
            engine.step()
        torch.cuda.synchronize()
        yield (sum(sequence.num_output for sequence in sequences) - said) / (time.perf_counter() - began)
    for name in list(engine.requests):
        engine.abort(name)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file for the ledger entry")
    parser.add_argument("--ledger", action="store_true", help="put the entry into benchmarks/ledger, too")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--prefix", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--steps", type=int, default=16, help="decode steps of each of three rounds")
    parser.add_argument("--shape", choices=list(SHAPES), default="llama-3.1-8b")
    parser.add_argument("--seconds", type=float, default=90, help="no further side is begun later than this")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this measures a GPU, and there is none")
    notes = Notes(args.seconds)
    notes.say(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    try:
        for prefix in args.prefix:
            attention(notes, args.batch, prefix, thorough=True)
        for batch in (2, 4, 8, 16, 64):
            attention(notes, batch, args.prefix[0], thorough=False)
        with tempfile.TemporaryDirectory() as directory:
            write_config(Path(directory), SHAPES[args.shape])
            checkpoint = load_checkpoint(directory, "bfloat16", "cuda", load_format="dummy", skip_tokenizer_init=True)
        notes.say("weights are drawn")
        gc.collect()
        torch.cuda.empty_cache()
        steps(notes, checkpoint, args)
    finally:
        if notes.rows:
            _write(notes, args)


def _write(notes: Notes, args: argparse.Namespace) -> None:
    commit, dirty = ledger.code_version()
    entry = LedgerEntry(
        kind="method",
        key="hydragen",
        method="hydragen",
        model=args.shape,
        command=shlex.join(["python", "benchmarks/hydragen.py", *sys.argv[1:]]),
        commit=commit,
        dirty=dirty,
        created=ledger.now(),
        machine=describe_machine(),
        versions={"torch": torch.__version__},
        seeds=[0],
        settings={"batch": args.batch, "prefix": args.prefix, "suffix": SUFFIX, "steps": args.steps},
        sources=source_digests([Hydragen]),
        rows=notes.rows,
        ratios=notes.ratios[::-1],
        notes=notes.notes,
    )
    if args.out is not None:
        args.out.write_text(entry.model_dump_json(indent=1) + "\n", encoding="utf-8")
    if args.ledger:
        notes.say(f"written to {ledger.write(entry, ledger.default_directory())}")


if __name__ == "__main__":
    main()
