"""What drafts bring at a given acceptance: speculative decoding and PEARL beside plain decoding, by batch size.

The draft model runs at its full cost, and what it would guess is replaced by the target's own greedy tokens from a
first pass, of which a seeded share is corrupted. So the acceptance is set, and does not depend on any draft's training.

    python benchmarks/planted_acceptance.py --device cuda --out planted.json
    python benchmarks/planted_acceptance.py --device cuda --shape llama-3.1-8b --load-format dummy
    python benchmarks/planted_acceptance.py --device cpu --batch 1 --tokens 16 --acceptance 0.8

Speed is that of decoding alone, without the prompt's step; the better of the repeats counts. Where the weights are
random and narrow, rounding may end an answer's likeness to the first pass early: tokens per step show it.
"""

import argparse
import json
import shlex
import sys
import tempfile
import time
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
from headstart.engine.seams import DraftLength
from headstart.evaluation.ledger import code_version, now
from headstart.evaluation.machine import describe_machine
from headstart.evaluation.random_checkpoint import write_config
from headstart.evaluation.shape import SHAPES
from headstart.methods.decode.draft_model import DraftModel, _Growing
from headstart.methods.decode.pearl import Pearl
from headstart.methods.decode.speculative import Speculative

PROMPT = 32


class Script:
    """What the target says to each prompt, and at which places the draft misses it."""

    def __init__(self, vocab: int, seed: int) -> None:
        self.answers: list[list[int]] = []
        self.share = 1.0
        self._vocab, self._seed = vocab, seed

    def guess(self, prompt: int, place: int) -> int:
        """The guess for an output position of an answer."""
        token = self.answers[prompt][min(place, len(self.answers[prompt]) - 1)]
        stands = np.random.default_rng((self._seed, prompt, place)).random() < self.share
        return token if stands else (token + 1) % self._vocab


class Planted(DraftModel):
    """A draft model that computes its guesses, and says those of a script."""

    script: Script

    def _grow(self, live: list[_Growing], hidden: Tensor, rule: DraftLength) -> list[_Growing]:
        # Read as any draft's are, so that they cost what they cost.
        self.checkpoint.decoder.logits(hidden).argmax(-1).tolist()
        for each in live:
            token = self.script.guess(int(each.sequence.request.request_id.rpartition("-")[2]), each.place)
            each.tokens.append(token)
            each.feed = [token]
        return [each for each in live if len(each.tokens) < each.length]


def planted(kind: type[Speculative] | type[Pearl], draft: Checkpoint, script: Script, length: int) -> Any:
    """A method whose draft follows the script."""

    class Method(kind):  # type: ignore[misc, valid-type]
        def start(self, checkpoint: Checkpoint) -> None:
            device = checkpoint.decoder.embedding.weight.device
            self._model = Planted(draft, kind.__name__.lower())
            self._model.script = script
            self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    return Method(draft=draft.name, length=length, guard=False)


class Bench:
    """The engines under measurement, on one target.

    Args:
        args: of the command line.
        directory: for configs of random weights.
    """

    def __init__(self, args: argparse.Namespace, directory: Path) -> None:
        self.args = args
        dummy = {"load_format": args.load_format, "skip_tokenizer_init": True}
        if args.shape is None:
            target, draft = "default", "headstart-draft"
        else:
            shape = SHAPES[args.shape]
            layers = args.draft_layers or max(1, shape.layers // 16)
            write_config(directory / "target", shape)
            write_config(directory / "draft", replace(shape, layers=layers))
            target, draft = str(directory / "target"), str(directory / "draft")
        self.target = load_checkpoint(target, args.dtype, args.device, **dummy)
        self.draft = load_checkpoint(draft, args.dtype, args.device, **dummy)
        self.script = Script(self.target.config.vocab_size, args.seed)
        random = np.random.default_rng(args.seed)
        vocab = self.target.config.vocab_size
        self.prompts = random.integers(vocab // 16, vocab, (max(args.batch), PROMPT)).tolist()
        self._runs = 0

    def engine(self, use: list[Any]) -> Engine:
        """An engine on the target."""
        length = PROMPT + self.args.tokens + 64
        settings: dict[str, Any] = {"max_model_len": length, "max_num_seqs": max(self.args.batch)}
        pages = max(self.args.batch) * (length // 16 + 2)
        args = EngineArgs(
            device=self.args.device,
            use=use,
            enable_prefix_caching=False,
            skip_tokenizer_init=True,
            page_size=16,
            num_pages=pages,
            **settings,
        )
        return Engine(args, self.target)

    def decode(self, engine: Engine, batch: int) -> tuple[float, float, list[list[int]]]:
        """Tokens per second after the first of each, tokens per step and sequence, and the answers."""
        best, per_step, answers = 0.0, 0.0, [[] for _ in range(batch)]
        for _ in range(self.args.repeats):
            self._runs += 1
            params = SamplingParams(
                max_tokens=self.args.tokens, temperature=0, ignore_eos=True, detokenize=False, output_kind="final"
            )
            for number, prompt in enumerate(self.prompts[:batch]):
                name = f"{self._runs}-{number}"
                engine.submit(engine.prepare(name, {"prompt_token_ids": prompt}, params))
            sequences = [request.sequences[0] for request in engine.requests.values()]
            while not all(sequence.num_output for sequence in sequences):
                engine.step()
            said, steps = sum(sequence.num_output for sequence in sequences), engine.stats().steps
            self._wait()
            began = time.perf_counter()
            while engine.has_work:
                for output in engine.step():
                    answers[int(output.request_id.rpartition("-")[2])] = list(output.outputs[0].token_ids)
            self._wait()
            said = batch * self.args.tokens - said
            best = max(best, said / (time.perf_counter() - began))
            per_step = said / batch / max(1, engine.stats().steps - steps)
        return best, per_step, answers

    def _wait(self) -> None:
        if self.args.device == "cuda":
            torch.cuda.synchronize()


def measure(bench: Bench) -> list[dict[str, Any]]:
    """One row per method, batch and acceptance."""
    args, rows = bench.args, []
    engine = bench.engine([])
    bench.decode(engine, max(args.batch))  # warm
    plain = {}
    for batch in args.batch:
        plain[batch], _, answers = bench.decode(engine, batch)
        if batch == max(args.batch):
            bench.script.answers = answers
        rows.append({"method": "plain", "batch": batch, "tokens_per_second": plain[batch]})
        print(f"{'plain':<12} batch {batch:<3} {plain[batch]:9.1f} tokens/s", flush=True)
    del engine
    for kind in (Speculative, Pearl):
        engine = bench.engine([planted(kind, bench.draft, bench.script, args.length)])
        bench.script.share = 1.0
        bench.decode(engine, max(args.batch))  # warm
        for batch in args.batch:
            for share in args.acceptance:
                bench.script.share = share
                speed, per_step, _ = bench.decode(engine, batch)
                row = {"method": kind.__name__.lower(), "batch": batch, "acceptance": share}
                row |= {"tokens_per_second": speed, "tokens_per_step": per_step, "speedup": speed / plain[batch]}
                rows.append(row)
                print(
                    f"{row['method']:<12} batch {batch:<3} acceptance {share:<4g} {speed:9.1f} tokens/s "
                    f"{row['speedup']:5.2f}x  {per_step:.2f} tokens/step",
                    flush=True,
                )
        del engine
    return rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--shape", choices=list(SHAPES), help="weights of this shape instead of the built-in model")
    parser.add_argument("--load-format", choices=["auto", "dummy"], help="dummy (as every --shape is): random weights")
    parser.add_argument("--draft-layers", type=int, help="of a shape's draft [default: a sixteenth]")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--acceptance", type=float, nargs="+", default=[0.5, 0.7, 0.9, 1.0])
    parser.add_argument("--length", type=int, default=4, help="guesses per draft")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a JSON file")
    args = parser.parse_args()
    args.load_format = args.load_format or ("auto" if args.shape is None else "dummy")
    if args.shape is not None and args.load_format != "dummy":
        parser.error("a shape has no weights to read: leave out --load-format auto")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        rows = measure(Bench(args, Path(directory)))
    print(f"{time.perf_counter() - began:.1f} s in all")
    if args.out is not None:
        commit, dirty = code_version()
        found = {
            "command": shlex.join(["python", "benchmarks/planted_acceptance.py", *sys.argv[1:]]),
            "commit": commit,
            "dirty": dirty,
            "created": now().isoformat(),
            "machine": describe_machine().model_dump(),
            "torch": torch.__version__,
            "settings": {name: str(value) for name, value in vars(args).items()},
            "rows": rows,
        }
        args.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
