"""Small arrays on their way to the device, without making the host wait for it."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_device(values: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """A copy of a host array on the device.

    To a GPU it goes through pinned memory and in stream order: a copy from pageable memory would first wait for all
    work that is queued there. PyTorch keeps the pinned blocks for reuse, and no longer than a copy needs them.
    """
    host = torch.from_numpy(values)
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def to_host(values: Tensor) -> "HostCopy":
    """Start copying a device's tensor to the host; the copy is whole once it is read."""
    return HostCopy(values)


class HostCopy:
    """A tensor on its way to the host."""

    def __init__(self, values: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._values = values
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> Tensor:
        """The values, once they are there: waits for what was queued before the copy, and for nothing after it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values
