"""Speculative decoding (arXiv 2211.17192): a small model guesses, the large one checks several guesses in one step."""

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

from headstart.checkpoints.reader import Checkpoint
from headstart.engine.request import Sequence
from headstart.engine.seams import Draft, Drafter, DraftLength, LayerKV
from headstart.errors import MethodError
from headstart.methods.decode.draft_model import DraftModel
from headstart.methods.registry import Claim, Paper, method

if TYPE_CHECKING:
    from headstart.evaluation.method_bench_spec import MethodBench

_LONGEST = 32


@method(
    "speculative",
    stage="decode",
    paper=Paper("Fast Inference from Transformers via Speculative Decoding", arxiv="2211.17192", venue="ICML 2023"),
    needs=("a draft model with the target's vocabulary",),
    when_not="""For large batches, where a step is bound by arithmetic and every guess costs as much as a token, and
    where the draft guesses badly or is not much smaller than its target: there the guard switches it off.""",
    claim=Claim(
        "2 to 3 times faster with identical outputs",
        setting="T5-XXL against the standard T5X implementation",
        source="abstract",
    ),
    composes="Quantised models, prefix caching, chunked prefill, any scheduler.",
    conflicts="Another drafter.",
)
class Speculative(Drafter):
    """Lets a small draft model guess the next tokens one by one, and the large model check all of them in one step.
    Each guess stands with a probability that leaves the output distributed exactly as the large model's. The first that
    does not stand is replaced by a draw from what the large model has over the draft. It pays where a step with a few
    rows more costs little more.

    Args:
        draft: directory or hub id of the draft model, with the target's vocabulary and at least its context.
        length: most guesses per step (the paper's gamma; 3 to 7 in its tables).
        guard: leave guesses out for loads and requests where, by the measured time per token, they lose.
    """

    def __init__(self, draft: str, length: int = 4, guard: bool = True) -> None:
        if not 1 <= length <= _LONGEST:
            raise MethodError(f"speculative: length must be 1 to {_LONGEST}, not {length}")
        self.draft = draft
        self.length = length
        self.guard = self.guarded = guard

    @classmethod
    def bench(cls) -> "MethodBench":
        """Answers long enough for the guard to settle; the prompt's own speed is not what it is about."""
        from headstart.evaluation.method_bench_spec import MethodBench, OfflineLengths, Quality

        return MethodBench((), (OfflineLengths((512,), decode_tokens=256), Quality(tasks=())), ("decode",))

    def start(self, checkpoint: Checkpoint) -> None:
        self._model = DraftModel.load(self.draft, checkpoint, "speculative")

    def layers(self) -> list[LayerKV]:
        return self._model.layers()

    def allocate(self, num_pages: int, page_size: int, max_model_len: int) -> None:
        self._model.allocate(num_pages, page_size, max_model_len)

    def capture(self, max_num_seqs: int, max_model_len: int) -> None:
        self._model.capture(max_num_seqs, max_model_len)

    def guess(self, sequences: Seq[Sequence], lengths: list[int], rule: DraftLength) -> list[Draft]:
        return self._model.guess(sequences, lengths, rule)

    def forget(self, sequence: Sequence) -> None:
        self._model.forget(sequence)
