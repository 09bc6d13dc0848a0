"""Data for the contract suite, and the runs on two ranks, which all methods share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from headstart.methods import registry
from tests.training.workbench import make_corpus

ROOT = Path(__file__).parents[3]
ON_TWO_RANKS_BROKEN = ("toy-local",)


def training_keys() -> list[str]:
    """Every training method that has code."""
    return [card.key for card in registry.catalogue(status="implemented") if card.kind == "training"]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer and shards."""
    return make_corpus(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def two_ranks(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every method's run on two ranks lies, by key: one start of the processes for all."""
    out = tmp_path_factory.mktemp("two-ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.methods.contract.two_ranks", str(data), str(out), *training_keys(), *ON_TWO_RANKS_BROKEN]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return out
