"""`headstart train` and `headstart export`, as commands and as a process that is interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from headstart.training.metrics import read_metrics
from tests.training import workbench
from tests.training.workbench import FIRST, phase, recipe

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workbench.make_corpus(tmp_path_factory.mktemp("corpus"))


def test_training_ends_with_a_model_that_answers(headstart: Run, base: Path, tmp_path: Path) -> None:
    path = workbench.write(base, recipe(phase(steps=3, **FIRST)))
    ran = headstart("train", str(path), "seed=5", "log_every=1", "--out", str(tmp_path / "run"), "--device", "cpu")
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'run' / 'model'}\n")
    resolved = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert resolved["seed"] == 5 and resolved["tokenizer"] == str(base / "tokenizer")
    assert {"metrics.jsonl", "checkpoints", "model"} <= {each.name for each in (tmp_path / "run").iterdir()}
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["Qwen3ForCausalLM"], "bfloat16")
    answer = headstart(
        "generate", "The king", "--model", str(tmp_path / "run" / "model"), "--max-tokens", "3", "--quiet"
    )
    assert answer.code == 0


def test_the_run_lies_in_runs_by_default(
    headstart: Run, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = workbench.write(base, recipe(phase(steps=1, **FIRST), name="named"))
    arguments = ("train", str(path), "--device", "cpu", "--export-dtype", "float32", "--tensorboard")
    assert headstart(*arguments).out == "runs/named/model\n"
    assert (tmp_path / "runs" / "named" / "tensorboard").is_dir()
    assert {t.dtype.itemsize for t in workbench.weights(tmp_path / "runs/named/model").values()} == {4}


def test_a_dry_run_says_what_it_takes_and_leaves_nothing(
    headstart: Run, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = workbench.write(base, recipe(phase("one", 60, **FIRST), phase("two", 40)))
    ran = headstart("train", str(path), "--dry-run", "--device", "cpu")
    assert ran.code == 0
    for words in (
        "24,768, 24,768 of them trained",
        "96.75 KiB weights, 96.75 KiB gradients, 193.6 KiB optimizer",
        "steps        100",
        "tokens       12,800",
        "at most",
        "layers.*.attention.qkv.weight ×2",
        "embedding.weight",
        "prose 0.91, code 1.60",
    ):
        assert words in ran.out
    assert not list(tmp_path.iterdir())


def test_an_export_of_a_checkpoint(headstart: Run, base: Path, tmp_path: Path) -> None:
    path = workbench.write(base, recipe(phase(steps=4, **FIRST), checkpoint_every=2))
    headstart("train", str(path), "--out", str(tmp_path / "run"), "--device", "cpu")
    out = tmp_path / "out"
    ran = headstart("export", str(tmp_path / "run"), str(out), "--dtype", "float32")
    assert ran.code == 0 and f"wrote step 4 to {out}" in ran.err
    ran = headstart("export", str(tmp_path / "run"), str(out))
    assert ran.code == 2 and "is there already; choose another directory or pass --overwrite" in ran.err
    ran = headstart("export", str(tmp_path / "run" / "checkpoints" / "step-00000002"), str(out), "--overwrite")
    assert ran.code == 0 and "wrote step 2" in ran.err
    ran = headstart("export", str(tmp_path), str(out), "--overwrite")
    assert ran.code == 2 and "neither a run's directory" in ran.err
    assert (out / "config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sead=1"], "unknown key 'sead'; did you mean 'seed'?"),
        (["seed"], "write an override as a.b=value, not 'seed'"),
        (["phases.mian.tokens=5k"], "names no phase; did you mean 'main'?"),
        (["phases.main.micro_batch_tokens=33"], "micro_batch_tokens must be a multiple of sequence_length"),
        (["phases.main.sources.prose.path=nowhere"], "nowhere holds no token shards"),
        (["tokenizer=nowhere"], "nowhere has no tokenizer.json; prepare the recipe's data with `headstart data"),
        (["model.config.vocab_size=100"], "has 288 tokens, and the model 100; raise model.config.vocab_size"),
        (["model.config.num_attention_heads=x"], "num_attention_heads"),
        (["phases.main.optimizer.name=adamv"], "there is no optimizer 'adamv'; did you mean 'adamw'?"),
        (["phases.main.schedule.decai=1"], "schedule wsd has no argument 'decai'; did you mean 'decay'?"),
        (["--use", "mecco"], "there is no method 'mecco'; did you mean 'meco'?"),
        (["--use", "sarathi"], "works while a model answers"),
        (["--device", "tpu"], "the device is cpu or cuda, not 'tpu'"),
        (["phases.main.sources.code.repeat=false", "phases.main.tokens=1M"], "the data of source 'code' ended before"),
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_bad_input_is_one_sentence(
    headstart: Run, base: Path, tmp_path: Path, arguments: list[str], message: str, dry: bool
) -> None:
    if dry and "ended before" in message:
        pytest.skip("two steps do not reach the end of the data")
    path = workbench.write(base, recipe(phase(steps=2, **FIRST)))
    arguments = arguments if "--device" in arguments else [*arguments, "--device", "cpu"]
    ran = headstart("train", str(path), *arguments, "--out", str(tmp_path / "run"), *(["--dry-run"] if dry else []))
    assert ran.code == 2 and message in ran.err
    last = ran.err.strip().splitlines()[-1]
    assert last.startswith("headstart: ") and "Traceback" not in ran.err
    assert not (tmp_path / "run" / "model").exists()


def test_a_missing_recipe_is_one_sentence(headstart: Run, tmp_path: Path) -> None:
    ran = headstart("train", str(tmp_path / "none.yaml"))
    assert ran.code == 2 and "none.yaml cannot be read" in ran.err


def test_ctrl_c_writes_a_checkpoint_ends_with_130_and_can_be_exported(
    headstart: Run, base: Path, tmp_path: Path
) -> None:
    path = workbench.write(base, recipe(phase(steps=3000, **FIRST), checkpoint_every=10**6), "long.yaml")
    process = subprocess.Popen(
        [sys.executable, "-m", "headstart.cli.main", "train", str(path), "--out", str(tmp_path), "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # Background jobs of a shell ignore Ctrl-C, and what they start does too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        deadline = time.monotonic() + 120
        while len(read_metrics(tmp_path / "metrics.jsonl")) < 2 and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "the same command goes on from there" in errors and "Traceback" not in errors
    ran = headstart("export", str(tmp_path), str(tmp_path / "out"))
    assert ran.code == 0 and (tmp_path / "out" / "model.safetensors").is_file()
