"""What every seam of the engine shares."""

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from headstart.checkpoints.reader import Checkpoint
    from headstart.models.config import ModelConfig


class Seam:
    """What all seams share: `slots` names the places in the engine that an implementation fills."""

    slots: tuple[str, ...] = ()
    splits: ClassVar[bool] = True
    """Whether it works where several ranks hold some heads each: it neither decides for all heads from what they
    compute, nor reads whole weights."""
    for_all: ClassVar[str] = ""
    """Why it cannot be one request's own, as the end of a sentence; empty where it can: it is asked for the sequences
    that have it, and what it keeps it keeps for each of them."""

    min_context: int | None = None
    """Tokens of context below which the slot's default runs instead; None takes what its card says."""

    def start(self, checkpoint: "Checkpoint") -> None:
        """Asked once, before anything else: refuse a model that it cannot serve (MethodError), or prepare for it."""
        return

    def longest(self, config: "ModelConfig") -> int:
        """Tokens of the longest sequence that the model can tell the positions of with this in force."""
        return config.max_extended_position

    def identity(self) -> str:
        """What decides beside its options, once it is started, what it computes: the content of a trained file, say.
        It is part of the identity of the keys that a lossy method writes."""
        return ""

    def counters(self) -> dict[str, int]:
        """What it has counted since the start, by name; `EngineStats` shows it."""
        return {}
