"""Two processes under torchrun, with sharded weights, compute what one does, and their checkpoints go on elsewhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from headstart.training.assembly import build_network
from headstart.training.checkpoint_store import CheckpointStore
from headstart.training.distributed import ONE_PROCESS
from headstart.training.language_model import LanguageModel
from headstart.training.loop import Interrupted, Trainer
from headstart.training.metrics import read_metrics
from headstart.training.optimizers import AdamW
from headstart.training.recipe import ModelRecipe
from tests.training import workbench
from tests.training.test_resume import stop_after
from tests.training.workbench import CONFIG, FIRST, losses, phase, recipe, weights

EVAL = {"eval": {"sources": {"held-out": "held-out"}, "every": 2}}
CONTENT = recipe(
    phase("short", 5, **EVAL, **FIRST),
    phase("long", 5, sequence_length=64, global_batch_tokens=256, tokens=5 * 256, micro_batch_tokens=64),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of `two_ranks.py`, and of one rank: `one`, and `from-one` as far as step 7."""
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch is built without torch.distributed")
    base = workbench.make_corpus(tmp_path_factory.mktemp("two"))
    muon = recipe(*CONTENT["phases"])
    muon["phases"][0]["optimizer"]["name"] = "muon"
    workbench.write(base, muon, "muon.yaml")
    workbench.write(base, CONTENT, "adamw.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headstart.training.run.plot_run", lambda directory: None)
        workbench.run(base, base / "one", CONTENT)
        workbench.run(base, base / "one-muon", muon)
        stop_after(7, patch)
        with pytest.raises(Interrupted):
            workbench.run(base, base / "from-one", CONTENT)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            str(Path(__file__).with_name("two_ranks.py")),
            str(base),
        ],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return base


def test_they_compute_what_one_does(base: Path) -> None:
    assert losses(base / "straight") == pytest.approx(losses(base / "one"), rel=1e-5)
    ours, theirs = (list(read_metrics(base / out / "metrics.jsonl")) for out in ("straight", "one"))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        for name in ("gradient_norm", "trained_tokens", "tokens", "learning_rate", "held-out/bits_per_byte"):
            assert (name in mine) == (name in other)
            assert name not in other or mine[name] == pytest.approx(other[name], rel=1e-5)
    exported, expected = weights(base / "straight" / "model"), weights(base / "one" / "model")
    for name, tensor in expected.items():
        torch.testing.assert_close(exported[name], tensor, rtol=1e-4, atol=1e-5)


def test_muon_orthogonalises_whole_matrices_and_not_shards(base: Path) -> None:
    # Its iteration is in bfloat16, where another order of sums shows.
    assert losses(base / "muon") == pytest.approx(losses(base / "one-muon"), rel=2e-4)
    assert losses(base / "muon") != pytest.approx(losses(base / "one"), rel=2e-4)


def test_they_go_on_bit_for_bit(base: Path) -> None:
    assert losses(base / "stopped") == losses(base / "straight")
    ours, theirs = weights(base / "stopped" / "model"), weights(base / "straight" / "model")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    mine, other = (state_of(base / out) for out in ("stopped", "straight"))
    assert mine and all(torch.equal(mine[name], other[name]) for name in other)


def state_of(out: Path) -> dict[str, torch.Tensor]:
    """The optimizer's whole state in the newest checkpoint of a run, read by one process."""
    store = CheckpointStore(out / "checkpoints", ONE_PROCESS)
    network = build_network(ModelRecipe(config=CONFIG), 0, out)
    optimizers = AdamW().build(network)
    store.load(store.steps()[-1], LanguageModel(network), optimizers)
    names = {parameter: name for name, parameter in network.named_parameters()}
    state = optimizers[0].state.items()
    return {f"{names[p]}/{key}": value for p, values in state for key, value in values.items()}


def test_the_optimizers_state_is_that_of_one(base: Path) -> None:
    ours, theirs = state_of(base / "straight"), state_of(base / "one")
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-6)


def test_one_goes_on_where_two_stopped_and_the_other_way_round(base: Path, tmp_path: Path) -> None:
    assert sorted(path.name for path in (base / "for-one/checkpoints/step-00000007").glob("rank-*")) == [
        "rank-0.pt",
        "rank-1.pt",
    ]
    shutil.copytree(base / "for-one", tmp_path / "for-one")
    seen = []
    real = Trainer.resume

    def resume(self: Trainer, step: int) -> None:
        real(self, step)
        seen.append(self.phase_step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "resume", resume)
        workbench.run(base, tmp_path / "for-one", CONTENT)
    assert seen == [2]
    for out in (tmp_path / "for-one", base / "from-one"):
        assert losses(out) == pytest.approx(losses(base / "one"), rel=1e-5)
