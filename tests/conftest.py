"""Fixtures that several folders of tests share."""

import os
from pathlib import Path

import pytest
import torch

# Without a GPU, kernels are run by Triton's interpreter; Triton reads this when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# One thread per process: small models are slower with more, and sums come out in one order.
torch.set_num_threads(1)


def data_directory() -> Path:
    """Where optional data lies: `HEADSTART_DATA`, or `shared/data` beside the repository."""
    given = os.environ.get("HEADSTART_DATA")
    return Path(given) if given else Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def stories() -> str:
    """The published 260-thousand-weight story model."""
    path = data_directory() / "checkpoints" / "stories260k"
    if not path.is_dir():
        pytest.skip(f"needs the stories260k checkpoint at {path}; set HEADSTART_DATA to where the data lies")
    return str(path)
