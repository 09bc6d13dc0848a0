"""Checkpoints: all that was put in comes out; half-written and broken ones are never taken for whole."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import filesystem

from headstart.training.checkpoint_store import CheckpointStore
from headstart.training.distributed import ONE_PROCESS
from headstart.training.errors import TrainingError
from headstart.training.metrics import read_metrics
from tests.training import workbench


def model(seed: int, width: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(width, 3), nn.Linear(3, 2))


def trained(network: nn.Module, steps: int = 2) -> list[torch.optim.Optimizer]:
    """Two optimizers, each over a part, after some steps."""
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon([network[0].weight], lr=0.1),  # type: ignore[index]
        torch.optim.AdamW([{"params": [network[0].bias], "lr": 0.2}, {"params": network[1].parameters()}], lr=0.3),  # type: ignore[index]
    ]
    for _ in range(steps):
        network(torch.randn(5, network[0].in_features)).square().sum().backward()  # type: ignore[index]
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return optimizers


def save(store: CheckpointStore, step: int, **state: Any) -> None:
    network = model(0)
    store.save(step, network, trained(network), state, {"step": step})


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, ONE_PROCESS)
    network = model(0)
    optimizers = trained(network)
    state = {
        "array": np.arange(6, dtype=np.int32)[::2],
        "flags": np.array([True, False]),
        "number": np.int64(7),
        "tensor": torch.arange(3),
        "plain": [None, True, 3, 0.5, "ü", {"deep": (1, np.zeros(2))}],
    }
    store.save(3, network, optimizers, state, {"step": 3, "phase": "x"})
    assert store.facts(3) == {"step": 3, "phase": "x", "ranks": 1}
    other = model(1)
    theirs = trained(other, 3)
    found = store.load(3, other, theirs)
    assert found["array"].tolist() == [0, 2, 4] and found["array"].dtype == torch.int32
    assert found["flags"].tolist() == [True, False] and found["number"] == 7 and found["tensor"].tolist() == [0, 1, 2]
    assert found["plain"][:5] == [None, True, 3, 0.5, "ü"] and found["plain"][5]["deep"][1].tolist() == [0, 0]
    for ours, back in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, back)
    for ours, back in zip(optimizers, theirs, strict=True):
        expected, got = ours.state_dict(), back.state_dict()
        assert expected["param_groups"] == got["param_groups"]
        for number, values in expected["state"].items():
            assert all(torch.equal(value, got["state"][number][name]) for name, value in values.items())
    alone = model(2)
    store.load_model(3, alone)
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), network.parameters(), strict=True))


def test_only_the_newest_are_kept_and_other_files_left_alone(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, ONE_PROCESS, keep=2)
    assert store.steps() == []
    (tmp_path / "step-notes").mkdir()
    for step in (1, 5, 12, 13):
        save(store, step)
    assert store.steps() == [12, 13] and (tmp_path / "step-notes").is_dir()
    save(store, 13, again=True)
    assert store.load(13, network := model(1), trained(network))["again"] is True


@pytest.mark.parametrize("place", ["weights", "state", "facts", "rename"])
def test_a_full_disk_leaves_the_one_before_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    store = CheckpointStore(tmp_path, ONE_PROCESS)
    save(store, 1, value=1)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if place == "weights":
            patch.setattr(filesystem, "_write_item", full)
        elif place == "state":
            patch.setattr(Path, "write_bytes", full)
        else:
            patch.setattr(Path, "write_text" if place == "facts" else "rename", full)
        with pytest.raises(
            TrainingError, match=r"step 2 .*: No space left on device; the checkpoint of step 1 is whole"
        ):
            save(store, 2, value=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    network = model(1)
    assert store.load(1, network, trained(network)) == {"value": 1}
    save(store, 2, value=2)
    assert store.steps() == [1, 2]


@pytest.mark.parametrize("room", [0, 1 << 10, 1 << 14])
def test_the_system_refuses_to_write_on(tmp_path: Path, room: int) -> None:
    resource = pytest.importorskip("resource")
    store = CheckpointStore(tmp_path, ONE_PROCESS)
    save(store, 1, value=1)
    network = model(0)
    optimizers = trained(network)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(TrainingError, match=r"step 2 .*: File too large; the checkpoint of step 1 is whole"):
            store.save(2, network, optimizers, {"value": torch.zeros(1 << 14)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert store.load(1, network, optimizers) == {"value": 1}


def test_a_run_on_a_full_disk_ends_with_a_sentence_and_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = workbench.make_corpus(tmp_path)
    content = workbench.recipe(checkpoint_every=2)
    straight = workbench.weights(workbench.run(base, tmp_path / "straight", content))
    real = filesystem._write_item

    def filling(*arguments: Any, **options: Any) -> Any:
        if (tmp_path / "run" / "checkpoints" / "step-00000002").is_dir():
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "_write_item", filling)
        with pytest.raises(TrainingError, match=r"step 4 .*No space left on device; the checkpoint of step 2 is whole"):
            workbench.run(base, tmp_path / "run", content)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 4
    found = workbench.weights(workbench.run(base, tmp_path / "run", content))
    assert all(torch.equal(found[name], straight[name]) for name in straight)


def test_another_model_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, ONE_PROCESS)
    save(store, 1)
    for network in (model(1, width=5), nn.Sequential(*model(1), nn.Linear(2, 2))):
        with pytest.raises(TrainingError, match="step-00000001 cannot be resumed: "):
            store.load(1, network, trained(network))
        with pytest.raises(TrainingError, match="step-00000001 cannot be read: "):
            store.load_model(1, network)


def test_nothing_but_data_is_unpickled(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, ONE_PROCESS)
    save(store, 1)
    torch.save({"random": Path}, tmp_path / "step-00000001" / "rank-0.pt")
    network = model(1)
    with pytest.raises(TrainingError, match="cannot be resumed: Weights only load failed"):
        store.load(1, network, trained(network))
