"""Tunes the rig's baseline one setting at a time, and prints what each value gave: `python -m` this module."""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from headstart.evaluation.rig import baseline
from headstart.evaluation.rig.baseline import BATCH_TOKENS, STEPS, arm_recipe
from headstart.evaluation.rig.corpus import RigCorpus, build_corpus
from headstart.evaluation.rig.runner import train_arm
from headstart.evaluation.rig.spec import RigArm, RigPhase

SEED = 100
"""Not among the seeds of benches."""

GRID: dict[str, list[Any]] = {
    "decay": [0.2, 0.4, 0.6, 0.8, "cosine"],
    "beta2": [0.95, 0.98, 0.99],
    "lr": [1e-3, 1.4e-3, 2e-3, 2.8e-3],
    "embedding_lr": [8e-3, 1.6e-2, 3.2e-2],
    "batch_tokens": [512, 1024, 2048],
    "warmup": [0.05, 0.1, 0.2],
    "embedding_std": [0.05, 0.1, 0.2, 0.3],
    "vector_lr": [4e-3, 8e-3, 1.6e-2, 3.2e-2],
    "weight_decay": [0.1, 0.3, 1.0],
}
"""Values by setting, in the order in which they are tried; learning rates are tried once more at the end."""


def start() -> dict[str, Any]:
    """The baseline as it stands."""
    optimizer, schedule = baseline.OPTIMIZER, baseline.SCHEDULE
    return {
        "lr": optimizer["lr"],
        "embedding_lr": optimizer["embedding_lr"],
        "batch_tokens": BATCH_TOKENS,
        "warmup": schedule["warmup"],
        "embedding_std": baseline.MODEL["embedding_std"],
        "vector_lr": optimizer.get("vector_lr", optimizer["lr"]),
        "beta2": optimizer["betas"][1],
        "weight_decay": optimizer["weight_decay"],
        "decay": schedule["decay"],
    }


def arm_of(settings: dict[str, Any]) -> RigArm:
    """The baseline with these settings, at the same tokens."""
    schedule = {"name": "wsd", "decay": settings["decay"], "warmup": settings["warmup"]}
    if settings["decay"] == "cosine":
        schedule = {"name": "cosine", "final": 0.0, "warmup": settings["warmup"]}
    optimizer = {"name": "adamw", "betas": [0.9, settings["beta2"]]}
    optimizer |= {name: settings[name] for name in ("lr", "embedding_lr", "vector_lr", "weight_decay")}
    changes = {"global_batch_tokens": settings["batch_tokens"], "optimizer": optimizer, "schedule": schedule}
    model = {"embedding_std": settings["embedding_std"]}
    return RigArm((RigPhase(changes=changes),), {"model": model}, tokens=BATCH_TOKENS / settings["batch_tokens"])


def held_out(settings: dict[str, Any], corpus: RigCorpus, seed: int = SEED) -> tuple[float, float]:
    """Mean held-out loss over the sources in nats a byte, and seconds of training."""
    recipe = arm_recipe(arm_of(settings), corpus, seed, steps=STEPS)
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        trained = train_arm("baseline", recipe, corpus, Path(scratch) / "run")
        seconds = time.perf_counter() - began
        return float(np.mean([trained.held_out_loss(name) for name in corpus.names])), seconds


def tune(corpus: RigCorpus, log: Path | None = None) -> dict[str, Any]:
    """Try every value of each setting with the best of the others so far; what was tried before is not tried again."""
    known: dict[str, float] = {}
    if log is not None and log.exists():
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        known = {json.dumps(line["settings"], sort_keys=True): line["loss"] for line in lines}

    def measured(settings: dict[str, Any]) -> float:
        key = json.dumps(settings, sort_keys=True)
        if key not in known:
            known[key], seconds = held_out(settings, corpus)
            if log is not None:
                with log.open("a") as file:
                    file.write(json.dumps({"settings": settings, "loss": known[key], "seconds": seconds}) + "\n")
        return known[key]

    best = start()
    for name in [*GRID, "lr", "embedding_lr"]:
        losses = {value: measured(best | {name: value}) for value in GRID[name]}
        best[name] = min(losses, key=losses.__getitem__)
        print(name, {value: round(loss, 4) for value, loss in losses.items()}, "→", best[name], flush=True)
    return best


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        data = Path(os.environ["HEADSTART_DATA"]) if "HEADSTART_DATA" in os.environ else None
        tune(build_corpus(Path(directory), data=data), Path(sys.argv[1]) if len(sys.argv) > 1 else None)
