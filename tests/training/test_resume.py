"""A run that is stopped and goes on gives the numbers of one that was not, bit for bit, on one device."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from headstart.training.errors import TrainingError
from headstart.training.loop import Interrupted, Trainer
from headstart.training.metrics import read_metrics
from headstart.training.run import RunOptions, train
from tests.training import workbench
from tests.training.workbench import FIRST, losses, phase, recipe, weights

TWO_PHASES = (
    phase("short", 5, **FIRST),
    # Goes on with the optimizer and along the schedule of the first.
    phase("long", 5, sequence_length=64, global_batch_tokens=256, tokens=5 * 256, micro_batch_tokens=128),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workbench.make_corpus(tmp_path_factory.mktemp("corpus"))


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Ask every trainer to stop once the run has done so many steps."""
    real = Trainer._train_step

    def stepping(self: Trainer) -> None:
        real(self)
        self.stop_requested |= self.step == step

    monkeypatch.setattr(Trainer, "_train_step", stepping)
    return monkeypatch


def stopped_and_resumed(base: Path, out: Path, content: dict[str, Any], *stops: int, device: str = "cpu") -> Path:
    for stop in stops:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match=f"stopped after step {stop}"):
            stop_after(stop, patch)
            workbench.run(base, out, content, device=device)
    return workbench.run(base, out, content, device=device)


def same_run(found: Path, expected: Path) -> bool:
    """Equal losses at every step and equal weights, to the last bit."""
    ours, theirs = weights(found / "model"), weights(expected / "model")
    same_weights = list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    return losses(found) == losses(expected) and same_weights


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stopped_anywhere(base: Path, tmp_path: Path, optimizer: str, precision: str) -> None:
    content = recipe(*TWO_PHASES, precision=precision)
    content["phases"][0]["optimizer"]["name"] = optimizer
    straight = tmp_path / "straight"
    workbench.run(base, straight, content)
    assert sorted(losses(straight)) == list(range(1, 11))
    # In the first phase, at its end, in the second, and twice.
    for stops in [(3,), (5,), (8,), (2, 6)] if precision == "fp32" else [(3, 8)]:
        out = tmp_path / "-".join(map(str, stops))
        stopped_and_resumed(base, out, content, *stops)
        assert same_run(out, straight), stops


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_stopped_anywhere_on_a_gpu(base: Path, tmp_path: Path, optimizer: str) -> None:
    content = recipe(*TWO_PHASES, precision="bf16", model={"config": workbench.CONFIG | {"head_dim": 16}})
    content["phases"][0]["optimizer"]["name"] = optimizer
    workbench.run(base, tmp_path / "straight", content, device="cuda")
    stopped_and_resumed(base, tmp_path / "stopped", content, 3, 8, device="cuda")
    assert same_run(tmp_path / "stopped", tmp_path / "straight")


def test_from_a_checkpoint_on_the_way_of_a_run_that_was_killed(base: Path, tmp_path: Path) -> None:
    content = recipe(*TWO_PHASES, checkpoint_every=2)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    workbench.run(base, straight, content)

    def die(self: Trainer) -> None:
        if self.step == 7:
            raise KeyboardInterrupt
        real(self)

    real = Trainer._train_step
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_train_step", die)
        workbench.run(base, killed, content)
    assert sorted(losses(killed)) == list(range(1, 8))
    steps = [path.name for path in (killed / "checkpoints").iterdir()]
    assert sorted(steps) == ["step-00000005", "step-00000006"]
    # A line that was being written, and a checkpoint.
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    (killed / "checkpoints" / ".step-00000008.partial").mkdir()
    workbench.run(base, killed, content)
    assert same_run(killed, straight)
    assert sorted(path.name for path in (killed / "checkpoints").iterdir()) == ["step-00000008", "step-00000010"]


def test_a_finished_run_stays_as_it_is(base: Path, tmp_path: Path) -> None:
    content = recipe(*TWO_PHASES)
    workbench.run(base, tmp_path / "run", content)
    shutil.copytree(tmp_path / "run", tmp_path / "before")
    workbench.run(base, tmp_path / "run", content)
    assert same_run(tmp_path / "run", tmp_path / "before")


def test_the_metrics_lines_are_the_same_but_for_the_times(base: Path, tmp_path: Path) -> None:
    content = recipe(
        phase("short", 5, **FIRST, eval={"sources": {"held-out": "held-out"}, "every": 2}), TWO_PHASES[1], log_every=2
    )
    workbench.run(base, tmp_path / "straight", content)
    stopped_and_resumed(base, tmp_path / "stopped", content, 3, 7)

    def lines(out: Path) -> list[dict[str, Any]]:
        timed = ("tokens_per_second", "mfu")
        return [{k: v for k, v in line.items() if k not in timed} for line in read_metrics(out / "metrics.jsonl")]

    assert lines(tmp_path / "stopped") == lines(tmp_path / "straight")
    assert [line["step"] for line in lines(tmp_path / "straight")] == [1, 2, 2, 4, 4, 5, 6, 8, 10]


def test_another_recipe_is_refused_with_its_keys(base: Path, tmp_path: Path) -> None:
    content = recipe(*TWO_PHASES)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        stop_after(3, patch)
        workbench.run(base, tmp_path, content)
    with pytest.raises(TrainingError, match=r"differs.*: seed, phases.0.optimizer.lr; give another --out"):
        workbench.run(base, tmp_path, content, "seed=4", "phases.short.optimizer.lr=1")
    with pytest.raises(TrainingError, match=r"differs.*: phases; give"):
        workbench.run(base, tmp_path, recipe(TWO_PHASES[0]))
    with pytest.raises(TrainingError, match="and 3 more"):
        overrides = [f"model.config.{key}=16" for key in list(workbench.CONFIG)[2:13]]
        workbench.run(base, tmp_path, content, *overrides)
    # What changes no number may change.
    workbench.run(base, tmp_path, content, "log_every=2", "keep=1", "checkpoint_every=4")


def test_moved_data_goes_on_and_other_data_is_refused(base: Path, tmp_path: Path) -> None:
    content = recipe(*TWO_PHASES)
    straight, moved = tmp_path / "straight", tmp_path / "moved"
    workbench.run(base, straight, content)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        stop_after(7, patch)
        workbench.run(base, moved, content)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(base, elsewhere)
    shutil.copytree(moved, tmp_path / "other")
    workbench.run(elsewhere, moved, content)
    assert same_run(moved, straight)
    lengths = [len(str(number)) + 1 for number in range(120)]
    workbench.write_source(elsewhere / "prose", workbench.small_tokenizer(), lengths)
    with pytest.raises(TrainingError, match="source 'prose' does not hold what it held"):
        workbench.run(elsewhere, tmp_path / "other", content)


def test_a_missing_recipe_or_a_broken_checkpoint_is_said(base: Path, tmp_path: Path) -> None:
    content = recipe(*TWO_PHASES)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        stop_after(7, patch)
        workbench.run(base, tmp_path / "run", content)
    newest = tmp_path / "run" / "checkpoints" / "step-00000007"
    for broken in ("rank-0.pt", "facts.json", ".metadata", "__0_0.distcp"):
        shutil.copytree(tmp_path / "run", tmp_path / broken)
        (tmp_path / broken / newest.relative_to(tmp_path / "run") / broken).write_bytes(b"junk")
        with pytest.raises(TrainingError, match=r"step-00000007.* cannot be re"):
            workbench.run(base, tmp_path / broken, content)
    (tmp_path / "run" / "recipe.yaml").unlink()
    with pytest.raises(TrainingError, match=r"recipe.yaml cannot be read"):
        workbench.run(base, tmp_path / "run", content)


def test_a_second_ctrl_c_does_not_wait_for_the_step(base: Path, tmp_path: Path) -> None:
    def interrupted(self: Trainer) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0)
        raise AssertionError("the step went on")

    before = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_train_step", interrupted)
        workbench.run(base, tmp_path, recipe())
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_in_another_thread_is_not_in_the_way_of_signals(base: Path, tmp_path: Path) -> None:
    done: list[Path] = []
    thread = threading.Thread(target=lambda: done.append(workbench.run(base, tmp_path, recipe())))
    thread.start()
    thread.join()
    assert done


def test_sigterm_writes_a_checkpoint_and_the_same_command_goes_on(base: Path, tmp_path: Path) -> None:
    content = recipe(phase(steps=400, **FIRST), checkpoint_every=10**6)
    path = workbench.write(base, content, "long.yaml")
    code = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from headstart.training.loop import Interrupted\n"
        "from headstart.training.run import RunOptions, train\n"
        "torch.set_num_threads(1)\n"
        "base, path, out = map(Path, sys.argv[1:])\n"
        "try:\n    train(path, RunOptions(out, base, 'cpu'))\n"
        "except Interrupted as stopped:\n    print(stopped)\n    sys.exit(130)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(base), str(path), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 120
        while len(read_metrics(tmp_path / "metrics.jsonl")) < 3 and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "stopped after step" in out, errors
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    step = json.loads((checkpoint / "facts.json").read_text())["step"]
    assert 3 <= step < 400 and max(losses(tmp_path)) == step
    # A few steps on, the numbers are those of a run that was never asked to stop.
    options = RunOptions(tmp_path, base, "cpu")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        stop_after(step + 3, patch)
        train(path, options)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        stop_after(step + 3, patch)
        workbench.run(base, tmp_path / "straight", content)
    assert losses(tmp_path) == losses(tmp_path / "straight")
