"""What a launch of the attention kernel is tuned by."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """What a launch is tuned by.

    Args:
        rows: of a tile: queries times the heads that share their keys.
        keys: of a tile.
        warps: per program.
        stages: tiles of keys that are under way at once.
        tensor_maps: load whole tiles by TMA where their keys lie together.
        behind: multiply a tile's values while the next one's scores are made weights.
        registers: most of a thread; None leaves it to the compiler.
        waves: parts into which the work is cut, in multiples of the GPU's multiprocessors.
    """

    rows: int
    keys: int
    warps: int = 4
    stages: int = 3
    tensor_maps: bool = False
    behind: bool = False
    registers: int | None = None
    waves: int = 2
