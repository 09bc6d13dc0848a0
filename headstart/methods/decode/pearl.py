"""PEARL (arXiv 2408.11850): draft and target model run at the same time instead of in turns."""

from collections.abc import Sequence as Seq
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from headstart.checkpoints.reader import Checkpoint
from headstart.engine.request import Sequence
from headstart.engine.seams import Draft, Drafter, DraftLength, FullLength, LayerKV
from headstart.errors import MethodError
from headstart.methods.decode.draft_model import DraftModel
from headstart.methods.registry import Claim, Paper, method

if TYPE_CHECKING:
    from headstart.evaluation.method_bench_spec import MethodBench

_LONGEST = 32


@dataclass
class _Chain:
    """What was last guessed for a sequence.

    Attributes:
        text: length of the sequence when the block was begun.
        pending: guesses that the model verified while the block was made.
        block: the guesses behind them.
        blocks: so many were made so far; their draws are kept apart by it.
    """

    text: int = 0
    pending: Draft | None = None
    block: Draft | None = None
    blocks: int = 0

    def continued(self, tokens: list[int]) -> Draft:
        """The rest of the block, if all that was pending stood and the block's first guess too; else nothing."""
        if self.block is None or not self.block.tokens or self.pending is None:
            return Draft([])
        if tokens[self.text :] != [*self.pending.tokens, self.block.tokens[0]]:
            return Draft([])
        return _part(self.block, 1, None)


@method(
    "pearl",
    stage="decode",
    paper=Paper("Parallel Speculative Decoding with Adaptive Draft Length", arxiv="2408.11850", venue="ICLR 2025"),
    needs=("a draft model with the target's vocabulary", "a second device, or compute to spare"),
    when_not="On one saturated GPU, where nothing can overlap, or for large batches.",
    claim=Claim(
        "up to 3.79 times over plain decoding, 1.52 times over speculative decoding",
        setting="""first version, the final one says 4.43 and 1.50 times; pairs of CodeLlama, Llama-2 and DeepSeek
        models on H100 80GB (official README)""",
        source="abstract",
    ),
    composes="`fastdraft` drafts, quantised models.",
    conflicts="`specdec++` (the length is adaptive already), large-batch serving.",
)
class Pearl(Drafter, FullLength):
    """Runs draft and target model at the same time instead of in turns. While the draft writes a block, the target
    already verifies its first token; while the target verifies a block, the draft writes the next one. The draft length
    adapts by itself: one token when the first guess fails, long chains while everything is accepted. It is lossless and
    needs no training.

    Args:
        draft: directory or hub id of the draft model, with the target's vocabulary and at least its context.
        length: guesses in a block (the paper's gamma); best is what the draft writes in the time of one step of the
            target (official default 4).
        guard: leave guesses out for loads and requests where, by the measured time per token, they lose.
    """

    slots = ("drafter", "draft_length")

    def __init__(self, draft: str, length: int = 4, guard: bool = True) -> None:
        if not 1 <= length <= _LONGEST:
            raise MethodError(f"pearl: length must be 1 to {_LONGEST}, not {length}")
        self.draft = draft
        self.length = length
        self.guard = self.guarded = guard
        self._chains: WeakKeyDictionary[Sequence, _Chain] = WeakKeyDictionary()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="pearl")
        self._writing: Future[list[Draft]] | None = None
        self._asked: list[Sequence] = []

    @classmethod
    def bench(cls) -> "MethodBench":
        """Answers long enough for the guard to settle; the prompt's own speed is not what it is about."""
        from headstart.evaluation.method_bench_spec import MethodBench, OfflineLengths, Quality

        return MethodBench((), (OfflineLengths((512,), decode_tokens=256), Quality(tasks=())), ("decode",))

    def start(self, checkpoint: Checkpoint) -> None:
        self._model = DraftModel.load(self.draft, checkpoint, "pearl")
        device = checkpoint.decoder.embedding.weight.device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def layers(self) -> list[LayerKV]:
        return self._model.layers()

    def allocate(self, num_pages: int, page_size: int, max_model_len: int) -> None:
        self._model.allocate(num_pages, page_size, max_model_len)

    def capture(self, max_num_seqs: int, max_model_len: int) -> None:
        self._model.capture(max_num_seqs, max_model_len)

    def guess(self, sequences: Seq[Sequence], lengths: list[int], rule: DraftLength) -> list[Draft]:
        """What is pending, at once; the blocks behind it are begun, and go on while the model runs."""
        self._drop_writing()
        after: list[list[int]] = []
        numbers: list[int] = []
        self._asked = []
        room: list[int] = []
        drafts: list[Draft] = []
        for sequence, most in zip(sequences, lengths, strict=True):
            chain = self._chains.setdefault(sequence, _Chain())
            pending = _part(chain.continued(sequence.tokens), 0, most)
            chain.text, chain.pending, chain.block = len(sequence.tokens), pending, None
            drafts.append(pending)
            # Behind what is pending the answer has room for so many tokens.
            left = sequence.request.max_tokens - sequence.num_output - len(pending.tokens)
            chain.blocks += 1
            self._asked.append(sequence)
            after.append(pending.tokens)
            numbers.append(chain.blocks)
            room.append(min(self.length, left))
        self._writing = self._writer.submit(self._write, self._asked, room, rule, after, numbers)
        return drafts

    def late(self, sequences: Seq[Sequence]) -> list[Draft]:
        """The first guess of each block."""
        self._finish_writing()
        blocks = [self._chains[sequence].block for sequence in sequences]
        return [Draft([]) if block is None else _part(block, 0, 1) for block in blocks]

    def forget(self, sequence: Sequence) -> None:
        self._drop_writing()
        self._chains.pop(sequence, None)
        self._model.forget(sequence)

    def _write(
        self,
        sequences: list[Sequence],
        lengths: list[int],
        rule: DraftLength,
        after: list[list[int]],
        numbers: list[int],
    ) -> list[Draft]:
        """Make blocks, on the writer's thread and, on a GPU, its stream."""
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            blocks = self._model.guess(sequences, lengths, rule, after, numbers)
            if self._stream is not None:
                self._stream.synchronize()
        return blocks

    def _drop_writing(self) -> None:
        """Wait for blocks that a step has left behind which did not come to its end, and forget them."""
        writing, self._writing = self._writing, None
        if writing is not None:
            wait([writing])
            self._asked = []

    def _finish_writing(self) -> None:
        """Wait for the blocks that are being made, and keep them."""
        writing, self._writing = self._writing, None
        if writing is not None:
            for sequence, block in zip(self._asked, writing.result(), strict=True):
                self._chains[sequence].block = block
            self._asked = []


def _part(draft: Draft, first: int, after: int | None) -> Draft:
    """Some of a draft's guesses."""
    chosen = slice(first, after)
    return Draft(draft.tokens[chosen], None if draft.probabilities is None else draft.probabilities[chosen])
