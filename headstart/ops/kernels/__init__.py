"""Triton kernels, one file per op. Triton is imported with the first kernel that runs, never with the package."""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


def run_on(*tensors: Tensor | None) -> bool:
    """Whether kernels may take these tensors; the plain path is taken otherwise.

    They may where all lie on a GPU, Triton is installed, no gradient is wanted, and neither autocast nor a compiler
    is at work.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    if not all(tensor.is_cuda for tensor in given) or not has_triton():
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return False
    return not (torch.compiler.is_compiling() or torch.is_autocast_enabled("cuda"))


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None
