"""The link between two engines of this machine, measured: how fast pages of keys go from one to the other."""

import time
from statistics import median

import torch

from headstart.ops.staging import to_device, to_host

_BYTES = 64 * 2**20
_PIECE = 256 * 2**10
_ROUNDS = 5


def measure_link(device: str) -> float:
    """Bytes per second from the pages of one engine to those of another, on the way that they take: straight from
    memory to memory, and where they lie on a GPU through the host's, pinned.

    Args:
        device: where both engines keep their keys, "cpu" or "cuda:N".
    """
    pieces = _BYTES // _PIECE
    source = torch.zeros(pieces, _PIECE, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    pages = torch.randperm(pieces, generator=torch.Generator().manual_seed(0)).to(device)
    seconds = []
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        target[pages.flip(0)] = to_device(to_host(source[pages]).read().numpy(), source.device)
        # Reading one number waits for all of them.
        target[0, 0].item()
        seconds.append(time.perf_counter() - begun)
    return _BYTES / median(seconds)
