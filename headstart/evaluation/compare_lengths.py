"""Contenders side by side over prompt lengths: time to first token, decode speed and memory, in rounds of turns."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from headstart.evaluation.compare_figures import (
    first_token_rows,
    length_rows,
    ratios_of,
    reached_notes,
    together_row,
)
from headstart.evaluation.compare_rounds import INTERRUPTED, Reporter, busy_notes, duration, interleaved
from headstart.evaluation.compare_subject import Subject, free_memory
from headstart.evaluation.crossover import crossovers, sentence
from headstart.evaluation.ledger import Crossover, Ratio, Row
from headstart.evaluation.machine import MachinePeaks
from headstart.evaluation.sides import BenchmarkError, SideSettings
from headstart.evaluation.worker import SideProcess

SHORTEST, LONGEST = 256, 8192
# Defaults are cut so that a run on a small machine ends in less than five minutes.
DEFAULT_BUDGET = 200.0
# A length whose single call takes longer than this has no round of its own to warm up with.
_LONG_CALL = 5.0
_MEMORY_SHARE = 0.8
_PAGE = 16
_STEP_ROWS = 2048


@dataclass(frozen=True)
class Contender:
    """One side of a comparison.

    Attributes:
        label: how rows name it.
        side: key of `headstart.evaluation.sides.SIDES`.
        use: methods of this engine, as `--use` takes them.
        checkpoint: what it runs where that is not the model of the others, such as one that its method has trained.
    """

    label: str
    side: str = "headstart"
    use: tuple[str, ...] = ()
    checkpoint: Path | None = None


@dataclass(frozen=True)
class LengthsSettings:
    """What is measured at which lengths. Lengths are in tokens.

    Args:
        lengths: of prompts; empty takes lengths that suit the model and the machine.
        decode_tokens: tokens over which the decode speed is taken.
        together: requests that arrive at once, their prompt and output lengths; None leaves that out.
        repeats: rounds that count.
        seed: of prompts, with the round.
        threads: of every contender (default: what suits the model).
        gguf: the model for llama.cpp (default: written from the checkpoint).
    """

    lengths: tuple[int, ...] = ()
    decode_tokens: int = 32
    together: tuple[int, int, int] | None = None
    repeats: int = 5
    seed: int = 0
    threads: int | None = None
    gguf: Path | None = None

    def __post_init__(self) -> None:
        counts = (*self.lengths, self.decode_tokens, self.repeats, *(self.together or ()), self.threads)
        if any(count is not None and count < 1 for count in counts):
            raise BenchmarkError("lengths, tokens, requests, repeats and threads must all be at least 1")

    def chosen(self, subject: Subject) -> tuple[int, ...]:
        """The lengths in ascending order, each once.

        Raises:
            BenchmarkError: one is beyond what the model can tell apart.
        """
        room = subject.longest - self.decode_tokens - 1
        if room < 1:
            raise BenchmarkError(f"{subject.name} has no room for a prompt and {self.decode_tokens} tokens more")
        if not self.lengths:
            return _default_lengths(room)
        beyond = max(self.lengths)
        if beyond > room:
            raise BenchmarkError(
                f"a prompt of {beyond} tokens and {self.decode_tokens} decoded ones are beyond the {subject.longest} "
                f"positions of {subject.name}; lower --lengths or --decode-tokens"
            )
        return tuple(sorted(set(self.lengths)))


def _default_lengths(room: int) -> tuple[int, ...]:
    """Powers of two from 256, and what the model has room for if that is half as much again."""
    found = []
    length = SHORTEST
    while length <= min(room, LONGEST):
        found.append(length)
        length *= 2
    if not found or (found[-1] < LONGEST and room >= 1.5 * found[-1]):
        found.append(room // 64 * 64 or room)
    return tuple(found)


class Called(Protocol):
    """A contender that has loaded; see `SideProcess`."""

    versions: dict[str, str]

    def call(self, name: str, *arguments: Any) -> dict[str, Any]:
        """Run a measurement of the side."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass
class LengthsResult:
    """What was measured: ledger rows, comparisons with the first contender, and what a reader should know."""

    rows: list[Row] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    crossovers: list[Crossover] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    partial: str | None = None


@dataclass
class LengthsRun:
    """A comparison over lengths.

    Args:
        subject: the model.
        contenders: at least one; the others are compared with the first.
        settings: what is measured.
        peaks: of the machine, for the share of them that was reached.
        directory: for files that contenders need.
        reporter: hears how it goes on.
        launch: starts a contender; each is a process of its own.
    """

    subject: Subject
    contenders: Sequence[Contender]
    settings: LengthsSettings
    peaks: MachinePeaks | None
    directory: Path
    reporter: Reporter
    launch: Callable[[SideSettings], Called] = SideProcess
    answers: dict[tuple[int, str], list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    together: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    attended: dict[tuple[int, str], float] = field(default_factory=dict)

    def run(self) -> LengthsResult:
        """Measure. Ctrl-C, or a contender that dies, keeps what is complete.

        Raises:
            BenchmarkError: a contender cannot load, or failed before anything was complete.
        """
        lengths = self._that_fit(self.settings.chosen(self.subject))
        result = LengthsResult()
        with ExitStack() as stack:
            sides = self._start(stack, lengths)
            for side in sides.values():
                result.versions |= side.versions
            lengths = self._plan(sides, lengths)
            try:
                for length in lengths:
                    self._measure_length(sides, length)
                self._measure_together(sides)
            except KeyboardInterrupt:
                result.partial = INTERRUPTED
            except BenchmarkError as error:
                result.partial = str(error)
        if result.partial is not None and not self._complete(lengths):
            raise BenchmarkError(f"nothing was measured: {result.partial}")
        self.reporter.done()
        return self._finish(result, lengths)

    def _that_fit(self, lengths: Sequence[int]) -> list[int]:
        """The lengths for which memory suffices, all contenders together."""
        free = free_memory(self.subject.device) * _MEMORY_SHARE
        fitting = [length for length in lengths if self._memory(length) <= free]
        if not fitting:
            raise BenchmarkError(
                f"a prompt of {lengths[0]} tokens takes about {self._memory(lengths[0]) / 2**30:.1f} GiB for "
                f"{len(self.contenders)} contenders, more than this machine has free; compare fewer, or lower --lengths"
            )
        if len(fitting) < len(lengths):
            self.reporter.say(
                f"left out for lack of memory: {', '.join(f'{n:,}' for n in lengths[len(fitting) :])} tokens"
            )
        return fitting

    def _memory(self, length: int) -> int:
        """Bytes that all contenders take together, roughly and rather too many."""
        config, size = self.subject.config, self.subject.itemsize
        tokens = max(length + self.settings.decode_tokens + 1, self._together_tokens())
        cache = 2 * config.num_layers * config.num_kv_heads * config.head_dim * size * tokens
        total = 0
        for contender in self.contenders:
            rows = min(length, _STEP_ROWS) if contender.side != "transformers" else length
            working = rows * (3 * config.intermediate_size + 6 * config.hidden_size) * 4
            total += self.subject.weights * size + cache + working
        return total

    def _together_tokens(self) -> int:
        requests, prompt, output = self.settings.together or (0, 0, 0)
        return requests * (prompt + output)

    def _start(self, stack: ExitStack, lengths: Sequence[int]) -> dict[str, Called]:
        settings, sides = self.settings, {}
        requests, prompt, output = settings.together or (1, 1, 1)
        longest = max(max(lengths) + settings.decode_tokens + 1, prompt + output)
        # With room to spare, so that the last of many requests need not wait for a page.
        pages = int(1.05 * max(-(-longest // _PAGE), requests * -(-(prompt + output) // _PAGE))) + 2
        for contender in self.contenders:
            self.reporter.say(f"loading {contender.label}")
            checkpoint = contender.checkpoint or self.subject.path
            if contender.side == "llama.cpp":
                checkpoint = settings.gguf or self.subject.gguf(self.directory, self.subject.dtype)
            options = {"use": list(contender.use), "num_pages": pages} if contender.side == "headstart" else {}
            side = SideSettings(
                side=contender.side,
                dtype=self.subject.dtype,
                checkpoint=str(checkpoint),
                threads=settings.threads or self.subject.threads,
                max_length=longest,
                max_concurrent_length=prompt + output,
                max_sequences=requests,
                engine_options=options,
                device=self.subject.device,
            )
            sides[contender.label] = stack.enter_context(self.launch(side))
        return sides

    def _plan(self, sides: dict[str, Called], lengths: list[int]) -> list[int]:
        """Warm up at the shortest length, say how long it will take, and leave out what takes too long by default."""
        self._costs: dict[int, float] = defaultdict(float)
        for label, side in sides.items():
            self.reporter.step(f"warm-up: {label}")
            small = max(1, min(SHORTEST, lengths[0]))
            for draw in ("first", "second"):
                found = side.call("answer", self.subject.prompt(small, draw), 2)["result"]
            for length in lengths:
                decode = self.settings.decode_tokens / found["decode_rate"]
                self._costs[length] += found["ttft"] * self._growth(small, length) + decode
        if not self.settings.lengths:
            lengths = self._affordable(lengths)
        rounds = {length: self.settings.repeats + self._warms_up(length, len(sides)) for length in lengths}
        self.reporter.begin(len(sides) * (sum(rounds.values()) + self.settings.repeats * bool(self.settings.together)))
        expected = sum(self._costs[length] * rounds[length] for length in lengths)
        self.reporter.say(f"the measurement will take about {duration(expected)}")
        return lengths

    def _affordable(self, lengths: list[int]) -> list[int]:
        """The lengths that the default budget of time allows, but at least the shortest."""
        spent, found = 0.0, []
        for length in lengths:
            spent += self._costs[length] * (self.settings.repeats + 1)
            if found and spent > DEFAULT_BUDGET:
                left = ", ".join(f"{n:,}" for n in lengths[len(found) :])
                self.reporter.say(f"left out, since they would take long: {left} tokens; ask for them with --lengths")
                break
            found.append(length)
        return found

    def _growth(self, small: int, length: int) -> float:
        """How much longer a prompt takes to read than a short one."""
        costs = self.subject.costs
        return costs.prefill_flops(length) / costs.prefill_flops(small) if costs else length / small

    def _warms_up(self, length: int, sides: int) -> int:
        return int(self._costs[length] / sides < _LONG_CALL)

    def _measure_length(self, sides: dict[str, Called], length: int) -> None:
        warm = self._warms_up(length, len(sides))
        for round_, label in interleaved(list(sides), self.settings.repeats + warm):
            dropped = round_ < warm
            what = "warm-up" if dropped else f"round {round_ + 1 - warm}"
            self.reporter.step(f"{what}, {length:,} tokens: {label}")
            prompt = self.subject.prompt(length, f"{self.settings.seed} {length} {round_}")
            answer = sides[label].call("answer", prompt, self.settings.decode_tokens)
            if not dropped:
                self.answers[length, label].append(answer)
        for contender in self.contenders:
            if contender.use:
                prompt = self.subject.prompt(length, f"{self.settings.seed} {length} 0")
                share = sides[contender.label].call("attended", prompt)["result"]
                if share is not None:
                    self.attended[length, contender.label] = share

    def _measure_together(self, sides: dict[str, Called]) -> None:
        """Requests that arrive at once, in rounds like the others."""
        if self.settings.together is None:
            return
        requests, length, tokens = self.settings.together
        for round_, label in interleaved(list(sides), self.settings.repeats):
            self.reporter.step(f"round {round_ + 1}, {requests} requests together: {label}")
            prompts = [self.subject.prompt(length, f"{self.settings.seed} {round_} {i}") for i in range(requests)]
            self.together[label].append(sides[label].call("concurrent", prompts, tokens))

    def _complete(self, lengths: Sequence[int]) -> list[int]:
        """The lengths at which every contender has had a round."""
        return [n for n in lengths if all(self.answers.get((n, c.label)) for c in self.contenders)]

    def _finish(self, result: LengthsResult, lengths: Sequence[int]) -> LengthsResult:
        labels = [contender.label for contender in self.contenders]
        complete = self._complete(lengths)
        for length in complete:
            rounds = min(len(self.answers[length, label]) for label in labels)
            for label in labels:
                result.rows += length_rows(
                    label,
                    length,
                    self.settings.decode_tokens,
                    self.answers[length, label][:rounds],
                    self.subject,
                    self.peaks,
                    self.attended.get((length, label)),
                )
        if self.settings.together is not None and all(
            len(self.together[label]) == self.settings.repeats for label in labels
        ):
            result.rows += [together_row(label, self.settings.together, self.together[label]) for label in labels]
        result.rows += first_token_rows(labels, {n: [self.answers[n, label] for label in labels] for n in complete})
        result.ratios = ratios_of(result.rows, labels)
        for first, other in ((labels[0], label) for label in labels[1:]):
            result.crossovers += crossovers(result.rows, other, first, ("TTFT", "decode"))
        every = [answer for answers in (*self.answers.values(), *self.together.values()) for answer in answers]
        result.notes = [
            *map(sentence, result.crossovers),
            *reached_notes(result.rows, complete[-1:]),
            *busy_notes(every),
            *self._about_prompts(),
        ]
        return result

    def _about_prompts(self) -> list[str]:
        read = "stretches of a story" if self.subject.tokenizer else "random tokens"
        return [
            f"prompts are {read}, new in every round and the same for all; greedy, end of sequence ignored",
            "every contender has a process of its own, and only one works at a time; values are wall-clock",
        ]
