"""Where kernels are tested: on a GPU, or in Triton's interpreter."""

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal numbers, the same on every device."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
    return values.to(dtype).to(DEVICE)


def assert_rounded_alike(got: Tensor, expected: Tensor) -> None:
    """Equal, but for sums whose last bit crosses a rounding boundary now and then.

    Triton's interpreter cuts off what does not fit into bfloat16 or eight bits, where a GPU rounds to nearest.
    """
    assert got.dtype == expected.dtype and got.shape == expected.shape
    cut = DEVICE == "cpu" and got.dtype not in (torch.float32, torch.float16)
    unit = torch.finfo(got.dtype).eps
    ours, theirs = got.cpu().float(), expected.cpu().float()
    bound = (4 if cut else 2) * unit
    torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound)
    if got.dtype != torch.float32 and not cut:
        assert (ours != theirs).sum() <= max(2, got.numel() / 10)
