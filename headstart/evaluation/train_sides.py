"""One side of the training benchmark, in a process of its own: this loop, or Transformers' Trainer."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from headstart.checkpoints.random_init import random_checkpoint
from headstart.training.data.mixture import Mixture, SourceSpec
from headstart.training.data.packing import Packer
from headstart.training.data.shards import ShardSource
from headstart.training.distributed import world
from headstart.training.flops import measured_peak, training_flops
from headstart.training.metrics import read_metrics
from headstart.training.recipe import recipe_of

WARM_UP = 5
"""Steps that are dropped, since they compile."""


def _headstart(job: dict[str, Any], device: torch.device) -> dict[str, float]:
    """This loop, as `headstart train` runs it."""
    from rich.console import Console

    from headstart.training.run import Run, RunOptions

    recipe = recipe_of(
        {
            "name": "bench",
            "seed": job["seed"],
            "precision": "bf16" if device.type == "cuda" else "fp32",
            "checkpoint_every": 10**9,
            "log_every": 1,
            "model": {"config": job["config"]},
            "phases": [
                {
                    "name": "bench",
                    "tokens": job["batch_tokens"] * (WARM_UP + job["steps"]),
                    "sequence_length": job["length"],
                    "global_batch_tokens": job["batch_tokens"],
                    "sources": {"text": {"path": job["shards"]}},
                    "optimizer": {"name": "adamw", "lr": 1e-3},
                    "schedule": {"name": "constant"},
                }
            ],
        },
        "the benchmark's recipe",
    )
    out = Path(job["scratch"])
    with world(str(device)) as where:
        Run(recipe, RunOptions(out, Path("."), str(device), console=Console(quiet=True)), where).execute()
    lines = [line for line in read_metrics(out / "metrics.jsonl") if line["step"] > WARM_UP]
    seconds = sum(job["batch_tokens"] / line["tokens_per_second"] for line in lines)
    return {"seconds": seconds, "loss": lines[-1]["loss"]}


def _transformers(job: dict[str, Any], device: torch.device) -> dict[str, float]:
    """Transformers' Trainer, compiled, in bfloat16, with fused AdamW and no logging, saving or evaluation."""
    import transformers
    from torch.utils.data import Dataset

    transformers.logging.set_verbosity_error()
    rows = job["batch_tokens"] // job["length"]
    packer = Packer(Mixture({"text": SourceSpec(ShardSource(job["shards"]), 1.0)}, 0), job["length"], lanes=rows)
    count = rows * (WARM_UP + job["steps"])
    packed = [torch.from_numpy(row.token_ids.astype("int64")) for row, _ in zip(packer, range(count), strict=False)]

    class Rows(Dataset):
        def __len__(self) -> int:
            return len(packed)

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"input_ids": packed[index], "labels": packed[index]}

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in (WARM_UP, WARM_UP + job["steps"]):
                _wait(device)
                times.append(time.perf_counter())

    times: list[float] = []
    transformers.set_seed(job["seed"])
    kind = transformers.AutoConfig.for_model(**job["config"])
    model = transformers.AutoModelForCausalLM.from_config(kind, attn_implementation="sdpa")
    model.config.use_cache = False
    on_gpu = device.type == "cuda"
    arguments = transformers.TrainingArguments(
        output_dir=job["scratch"],
        per_device_train_batch_size=rows,
        max_steps=WARM_UP + job["steps"],
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        bf16=on_gpu,
        tf32=on_gpu or None,
        torch_compile=on_gpu,
        use_cpu=not on_gpu,
        dataloader_num_workers=2 if on_gpu else 0,
        dataloader_pin_memory=on_gpu,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=job["seed"],
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=[Clock()])
    trainer.train()
    with torch.no_grad():
        model.eval()
        loss = model(input_ids=packed[0][None, :2048].to(device), labels=packed[0][None, :2048].to(device)).loss.item()
    return {"seconds": times[1] - times[0], "loss": loss}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _main(job: dict[str, Any]) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sides = {"headstart": _headstart, "transformers": _transformers}
    peak = measured_peak(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    network = random_checkpoint(job["config"], "float32").decoder
    # Rows without borders are what both sides are credited with, though this one sees shorter documents.
    flops = job["batch_tokens"] // job["length"] * training_flops(network, [job["length"]])
    found = sides[job["side"]](job, device)
    per_second = job["steps"] / found["seconds"]
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    print(
        json.dumps(
            {
                "tokens_per_second": per_second * job["batch_tokens"],
                "mfu": per_second * flops / peak,
                "peak_bytes": memory,
                "loss": found["loss"],
            }
        )
    )


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
