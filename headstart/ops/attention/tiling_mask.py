"""One small triangle from which the causal mask of every tile is cut (FastAttention, arXiv 2410.16663)."""

import torch
from torch import Tensor


class TilingMask:
    """The mask of any tile of at most `side` rows and columns, out of `4 side²` bytes whatever the length.

    Args:
        side: the most rows or columns of a tile.
        device: where masks are wanted.
    """

    def __init__(self, side: int, device: torch.device | str = "cpu") -> None:
        self.side = side
        self.triangle = torch.ones(2 * side, 2 * side, dtype=torch.bool, device=device).tril()

    def block(self, ahead: int, rows: int, columns: int) -> Tensor | bool:
        """Which keys of a tile its rows see: a view `[rows, columns]`, or one answer for all.

        Args:
            ahead: the first row's place less that of the first key.
            rows, columns: of the tile, at most `side` each.
        """
        if ahead >= columns - 1:
            return True
        if ahead <= -rows:
            return False
        top, left = max(ahead, 0), max(-ahead, 0)
        return self.triangle[top : top + rows, left : left + columns]
