"""Which tokens are guessed, how many, and which of them stand."""

from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstart.engine.seams.base import Seam
from headstart.engine.seams.cache import LayerKV
from headstart.ops.sampling import invert

if TYPE_CHECKING:
    from headstart.engine.request import Sequence


@dataclass(frozen=True)
class Draft:
    """A guess of what a sequence will say next.

    Attributes:
        tokens: n guessed ids, in order.
        probabilities: float32 `[n, V]`, from what each was drawn given those before it; None where each was certain.
    """

    tokens: list[int]
    probabilities: Tensor | None = None


class DraftLength(Seam, ABC):
    """How many tokens are guessed?"""

    slots = ("draft_length",)
    for_all = "drafts are made for all requests alike"

    @abstractmethod
    def go_on(
        self, sequences: "Seq[Sequence]", lengths: list[int], hidden: Tensor, probabilities: Tensor
    ) -> list[bool]:
        """Asked after each drafted token that the drafter's `length` would let another follow.

        Args:
            sequences: those that are being drafted for, N of them.
            lengths: tokens drafted so far, the one just drawn included.
            hidden: `[N, hidden]`, the draft model's last hidden states, from which that token was drawn.
            probabilities: float32 `[N, V]`, what it was drawn from.

        Returns:
            For whom to draft another. It may look at nothing but what the draft knows: whoever looked at the target
            would change what is drawn.
        """


class FullLength(DraftLength):
    """As long as the drafter lets drafts be: the default."""

    def go_on(
        self, sequences: "Seq[Sequence]", lengths: list[int], hidden: Tensor, probabilities: Tensor
    ) -> list[bool]:
        return [True] * len(lengths)


class Drafter(Seam, ABC):
    """Which tokens are guessed?

    The engine runs a draft's tokens through the model beside the sequence's own next one, and keeps those that a
    `Verifier` lets stand. What does not stand leaves no trace: its keys are written over.

    Attributes:
        length: most tokens of a draft.
        guarded: whether drafts are left out where they are measured to lose.
    """

    slots = ("drafter",)
    for_all = "drafts are made for all requests alike"
    length: int = 4
    guarded: bool = True

    def layers(self) -> list[LayerKV]:
        """What it keeps per token in a cache of its own, with as many pages as the model's; it counts as memory."""
        return []

    def allocate(self, num_pages: int, page_size: int, max_model_len: int) -> None:
        """Take that memory; asked once, when the sizes are known."""
        return

    def capture(self, max_num_seqs: int, max_model_len: int) -> None:
        """Capture CUDA graphs of what it runs, if it can; asked once, at start, where graphs are wanted."""
        return

    @abstractmethod
    def guess(self, sequences: "Seq[Sequence]", lengths: list[int], rule: DraftLength) -> list[Draft]:
        """Guess on for decoding sequences, each by at most so many tokens (at least 1); a draft may be empty.

        Random numbers come from `headstart.ops.sampling.uniforms`, keyed by the sequence's seed, the output
        position, `DRAFTED` and the sequence's `num_drafts`, and no number decides two things.
        """

    def late(self, sequences: "Seq[Sequence]") -> list[Draft]:
        """Asked for the same sequences once the model has run: a guess, of one token or none, for the position behind
        each draft. The model's last row decides on it, so that a drafter may make it while the model runs."""
        return [Draft([])] * len(sequences)

    def forget(self, sequence: "Sequence") -> None:
        """Let go of what is held for a sequence that has ended."""
        return


class Verifier(Seam, ABC):
    """Which guesses stand?"""

    slots = ("verifier",)
    for_all = "drafts are made for all requests alike"

    @abstractmethod
    def verify(self, target: Tensor, draft: Tensor, tokens: Tensor, points: Tensor) -> Tensor:
        """Decide N positions, of any drafts: each as if every guess before it stood.

        Args:
            target: float64 `[N, V]`, the model's probabilities after temperature and filters.
            draft: float64 `[N, V]`, from what the guesses were drawn.
            tokens: int64 `[N]`, the guesses.
            points: float64 `[N, 2]` in [0, 1), fresh and independent.

        Returns:
            int64 `[N]`, what is said at each position. Where that is the guess, the draft goes on.
        """


class RejectionSampling(Verifier):
    """Lets a guess x stand with probability min(1, p(x) / q(x)), and draws from what p has over q otherwise, so that
    the result is distributed as p whatever q is (Leviathan et al., arXiv 2211.17192): the default."""

    def verify(self, target: Tensor, draft: Tensor, tokens: Tensor, points: Tensor) -> Tensor:
        chosen = tokens[:, None]
        stands = points[:, :1] * draft.gather(1, chosen) < target.gather(1, chosen)
        excess = (target - draft).clamp_(min=0.0)
        # Where rounding leaves no excess the two are the same, and a guess is rejected with probability near 0.
        excess = torch.where(excess.sum(-1, keepdim=True) > 0, excess, target)
        return torch.where(stands[:, 0], tokens, invert(excess, points[:, 1:]))
