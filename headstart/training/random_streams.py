"""Named streams of randomness: drawing more from one never changes what another gives."""

import hashlib
from typing import Any

import numpy as np
import torch


def derived_seed(seed: int, *path: str | int) -> int:
    """A 63-bit seed for the stream of this name, e.g. `derived_seed(0, "data", "books", 3)`."""
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def torch_stream(seed: int, *path: str | int) -> torch.Generator:
    """A generator on the CPU for the stream of this name."""
    return torch.Generator().manual_seed(derived_seed(seed, *path))


def numpy_stream(seed: int, *path: str | int) -> np.random.Generator:
    """A NumPy generator for the stream of this name."""
    return np.random.Generator(np.random.Philox(derived_seed(seed, *path)))


def start_global_stream(seed: int, *path: str | int) -> None:
    """Let what draws from PyTorch's global generators (dropout) draw from the stream of this name."""
    torch.manual_seed(derived_seed(seed, *path))


def global_state() -> dict[str, Any]:
    """Where PyTorch's global generators stand, in tensors."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_global_state(state: dict[str, Any]) -> None:
    """Put them back there."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
