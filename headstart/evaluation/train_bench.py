"""Training speed beside Transformers' Trainer: the same network, rows and batch, each side in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from headstart.checkpoints.default import default_checkpoint_path
from headstart.checkpoints.tokenizer import Tokenizer
from headstart.evaluation import ledger
from headstart.evaluation.compare_rounds import Reporter
from headstart.evaluation.ledger import LedgerEntry, Ratio, Row
from headstart.evaluation.machine import describe_machine
from headstart.evaluation.sides import BenchmarkError
from headstart.texts import wild_wood
from headstart.training.data.bpe import encode_documents, save_tokenizer
from headstart.training.data.shards import ShardSource, ShardWriter
from headstart.training.documents import TextDocument

OURS, PEER = "headstart", "transformers"


@dataclass(frozen=True)
class TrainBenchSettings:
    """What is measured.

    Args:
        config: a Hugging Face config of the network, whose weights are drawn at random.
        shards: token shards that are trained on; None is the text that comes with the package.
        lengths: tokens of a row.
        batch_tokens: tokens of an optimizer step, whatever the length.
        steps: steps that are timed in each round, after a warm-up.
        repeats: rounds, in which the sides take turns.
        seed: of weights and data.
        target: times the peer's speed that is asked for; None asks for none.
    """

    config: dict[str, Any]
    shards: Path | None = None
    lengths: tuple[int, ...] = (2048, 32768)
    batch_tokens: int = 131_072
    steps: int = 20
    repeats: int = 3
    seed: int = 0
    target: float | None = 1.5

    def __post_init__(self) -> None:
        if min(*self.lengths, self.batch_tokens, self.steps, self.repeats) < 1:
            raise BenchmarkError("lengths, batch tokens, steps and repeats must all be at least 1")
        for length in self.lengths:
            if self.batch_tokens % length:
                raise BenchmarkError(f"a batch of {self.batch_tokens} tokens is no multiple of rows of {length}")


def run_train_bench(settings: TrainBenchSettings, reporter: Reporter, *, command: str, key: str) -> LedgerEntry:
    """Measure both sides at every length, turn by turn.

    Raises:
        BenchmarkError: Transformers is not installed, or a side failed; the sentence gives its last words.
    """
    if find_spec("transformers") is None or find_spec("accelerate") is None:
        raise BenchmarkError("the other side is Transformers' Trainer: pip install 'headstart[peers]'")
    commit, dirty = ledger.code_version()
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    reporter.begin(2 * settings.repeats * len(settings.lengths))
    with tempfile.TemporaryDirectory(prefix="headstart-bench-") as scratch:
        shards = settings.shards or _own_text(Path(scratch), settings.config["vocab_size"])
        for length in settings.lengths:
            for number in range(settings.repeats):
                for side in (OURS, PEER):
                    reporter.step(f"{side}, rows of {length:,} tokens, round {number + 1}")
                    found.setdefault((side, length), []).append(_measure(side, length, settings, shards))
        tokens = ShardSource(shards).tokens
    reporter.done()
    rows = {place: _row(*place, repeats) for place, repeats in found.items()}
    return LedgerEntry(
        kind="training",
        key=key,
        model=str(settings.config.get("model_type", "decoder")),
        command=command,
        commit=commit,
        dirty=dirty,
        created=ledger.now(),
        machine=describe_machine(),
        versions=_versions(),
        seeds=[settings.seed],
        settings=json.loads(json.dumps(asdict(settings), default=str)),
        rows=list(rows.values()),
        ratios=[Ratio.of(rows[OURS, n], rows[PEER, n], target=settings.target) for n in settings.lengths],
        notes=[
            f"The shards hold {tokens:,} tokens. This loop keeps the documents of a row apart; the Trainer lets them "
            "see each other, which asks less of its attention code.",
            "The Trainer is compiled, computes in bfloat16 on a GPU, SDPA and fused AdamW; it does not log or save.",
            "MFU is of the FLOPs of rows without borders over the matrix products measured in the same process.",
        ],
    )


def _row(side: str, length: int, repeats: list[dict[str, float]]) -> Row:
    return Row.of(
        f"training, rows of {length} tokens",
        side,
        "tokens/s",
        [repeat["tokens_per_second"] for repeat in repeats],
        higher_is_better=True,
        details={"mfu": max(r["mfu"] for r in repeats), "peak_bytes": max(r["peak_bytes"] for r in repeats)},
        metric="training throughput",
        length=length,
    )


def _measure(side: str, length: int, settings: TrainBenchSettings, shards: Path) -> dict[str, float]:
    """One side in a fresh process: `tokens_per_second`, `mfu`, `peak_bytes` and a `loss` that shows that it trained."""
    with tempfile.TemporaryDirectory(prefix="headstart-bench-") as scratch:
        job = {
            "side": side,
            "scratch": scratch,
            "length": length,
            "config": settings.config,
            "shards": str(shards),
            "batch_tokens": settings.batch_tokens,
            "steps": settings.steps,
            "seed": settings.seed,
        }
        result = subprocess.run(
            [sys.executable, "-m", "headstart.evaluation.train_sides", json.dumps(job)],
            capture_output=True,
            text=True,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        )
    if result.returncode:
        words = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise BenchmarkError(f"{side} failed with rows of {length} tokens: {words}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def _own_text(scratch: Path, vocab_size: int) -> Path:
    """Shards of the text of the package, for whoever has none."""
    tokenizer = Tokenizer.from_directory(default_checkpoint_path())
    if tokenizer.vocab_size > vocab_size:
        raise BenchmarkError(
            f"the built-in tokenizer has {tokenizer.vocab_size} tokens and the network {vocab_size}: give shards"
        )
    save_tokenizer(tokenizer, scratch / "tokenizer")
    with ShardWriter(scratch / "text", tokenizer) as writer:
        writer.add_all(encode_documents([TextDocument.of(wild_wood().text, "wild-wood")], tokenizer))
    return scratch / "text"


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    import headstart

    return {"headstart": headstart.__version__, "torch": torch.__version__, "transformers": version("transformers")}
