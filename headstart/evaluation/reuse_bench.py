"""Reuse of documents, measured: a full prefill, the cache of prefixes, plain reuse and a method take turns."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headstart.evaluation.compare_lengths import Called, Contender, LengthsResult
from headstart.evaluation.compare_rounds import INTERRUPTED, Reporter, busy_notes, interleaved
from headstart.evaluation.compare_subject import Subject
from headstart.evaluation.ledger import Ratio, Row
from headstart.evaluation.method_bench_spec import OwnAsk
from headstart.evaluation.shelf import Shelf, share_found
from headstart.evaluation.sides import BenchmarkError, SideSettings
from headstart.evaluation.worker import SideProcess
from headstart.methods import registry

if TYPE_CHECKING:
    from headstart.engine.llm import LLM

PREFIX_CACHE = "prefix cache"
_EXACT = "exact"
_OUTPUT_TOKENS = 24
_TARGET = 2.2


@dataclass(frozen=True)
class Reuse:
    """Questions over documents that recur in other combinations.

    Args:
        documents: in each prompt.
        tokens: of each document.
        pool: documents in all.
        questions: asked in each round.
    """

    documents: int = 6
    tokens: int = 512
    pool: int = 18
    questions: int = 4


QUICK = Reuse(documents=3, tokens=64, pool=6, questions=2)


def measure(ask: OwnAsk) -> LengthsResult:
    """A method that reuses documents, beside a full prefill, the cache of prefixes, and plain reuse of their keys
    (`plain_reuse` of its class)."""
    plain: str = registry.card(ask.use.partition(":")[0].strip()).implementation.plain_reuse  # type: ignore[union-attr]
    labels = dict.fromkeys([_EXACT, PREFIX_CACHE, plain, ask.use])
    contenders = [Contender(label, use=() if label in (_EXACT, PREFIX_CACHE) else (label,)) for label in labels]
    reuse = QUICK if ask.quick else Reuse()
    return ReuseRun(ask.subject, contenders, reuse, ask.repeats, ask.seed, ask.subject.threads, ask.reporter).run()


class Recall:
    """The questions within one contender's process."""

    def __init__(self, llm: "LLM", settings: dict[str, Any]) -> None:
        self._llm, self._documents, self._seed = llm, settings["documents"], settings["seed"]
        self._shelf = Shelf.of(llm, settings["pool"], settings["tokens"], self._seed)
        self._answer(self._shelf.every(self._documents), 1)

    def ask(self, indices: Sequence[int]) -> dict[str, Any]:
        """Questions one after another: time to first token, answers, and what the method has counted."""
        asked = [self._shelf.ask(index, self._documents, self._seed) for index in indices]
        outputs = self._answer([self._shelf.prompt(each) for each in asked], _OUTPUT_TOKENS)
        return {
            "ttft": [output.metrics.first_token_time - output.metrics.arrival_time for output in outputs],
            "found": [share_found(each, output.outputs[0].text) for each, output in zip(asked, outputs, strict=True)],
            "answered": bool(asked[0].answers),
            "prompt": statistics.mean(len(output.prompt_token_ids) for output in outputs),
            "counts": {key: value for each in self._llm.engine.stats().methods.values() for key, value in each.items()},
        }

    def _answer(self, prompts: Sequence[dict[str, Any]], tokens: int) -> list[Any]:
        from headstart import SamplingParams

        params = SamplingParams(max_tokens=tokens, temperature=0.0)
        return [self._llm.generate(prompt, params)[0] for prompt in prompts]


@dataclass
class ReuseRun:
    """Rounds of questions over documents that recur.

    Args:
        subject: the model.
        contenders: the baseline first, the method last.
        reuse: documents and questions.
        repeats: rounds that count.
        seed: of documents and questions.
        threads: of each contender.
        reporter: hears how it goes on.
        launch: starts a contender.
    """

    subject: Subject
    contenders: Sequence[Contender]
    reuse: Reuse
    repeats: int
    seed: int
    threads: int
    reporter: Reporter
    launch: Callable[[SideSettings], Called] = SideProcess
    found: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))

    def run(self) -> LengthsResult:
        """Measure; Ctrl-C keeps the rounds that are complete.

        Raises:
            BenchmarkError: a contender cannot load, the model is too short, or nothing was complete.
        """
        result = LengthsResult()
        with ExitStack() as stack:
            sides = {each.label: stack.enter_context(self._start(each)) for each in self.contenders}
            for side in sides.values():
                result.versions |= side.versions
            self.reporter.begin(len(sides) * (1 + self.repeats))
            try:
                self._measure(sides)
            except KeyboardInterrupt:
                result.partial = INTERRUPTED
        self.reporter.done()
        if len({len(rounds) for rounds in self.found.values()}) > 1 or len(self.found) < len(sides):
            rounds = min((len(self.found[label]) for label in sides), default=0)
            self.found = {label: rounds_[:rounds] for label, rounds_ in self.found.items()}
            if not rounds:
                raise BenchmarkError("nothing was measured: it was interrupted before the first round was complete")
        self._finish(result, list(sides))
        return result

    def _measure(self, sides: dict[str, Called]) -> None:
        settings = {
            "documents": self.reuse.documents,
            "tokens": self.reuse.tokens,
            "pool": self.reuse.pool,
            "seed": self.seed,
        }
        for label, side in sides.items():
            self.reporter.step(f"reading {self.reuse.pool} documents: {label}")
            side.call("shelve", settings)
        each = self.reuse.questions
        for round_, label in interleaved(list(sides), self.repeats):
            self.reporter.step(f"round {round_ + 1}: {label}")
            answer = sides[label].call("recall", list(range(round_ * each, (round_ + 1) * each)))
            self.found[label].append(answer)

    def _start(self, contender: Contender) -> Called:
        self.reporter.say(f"loading {contender.label}")
        # Documents end with a paragraph, so that they may be longer than asked for.
        document = self.reuse.tokens * 2
        longest = document * self.reuse.documents + 256
        if longest > self.subject.config.max_extended_position:
            raise BenchmarkError(
                f"{self.reuse.documents} documents of {self.reuse.tokens} tokens do not fit the "
                f"{self.subject.config.max_extended_position} positions of {self.subject.name}"
            )
        page = 64 if self.subject.device.startswith("cuda") else 16
        pages = (longest + document * self.reuse.pool) // page + self.reuse.pool + 2
        caching = contender.label == PREFIX_CACHE
        return self.launch(
            SideSettings(
                side="headstart",
                dtype=self.subject.dtype,
                checkpoint=str(self.subject.path),
                threads=self.threads,
                max_length=longest,
                max_concurrent_length=longest,
                max_sequences=1,
                engine_options={"use": list(contender.use), "num_pages": pages, "enable_prefix_caching": caching},
                device=self.subject.device,
                tokenizer=self.subject.tokenizer is not None,
                dummy=False,
            )
        )

    def _finish(self, result: LengthsResult, labels: list[str]) -> None:
        length = round(self.found[labels[0]][0]["result"]["prompt"])
        setting = f"{self.reuse.documents} documents"
        for label in labels:
            rounds = [answer["result"] for answer in self.found[label]]
            counts = {key: float(value) for key, value in rounds[-1]["counts"].items()}
            first = [statistics.median(each["ttft"]) for each in rounds]
            about = {"prompt_tokens": float(length)} | counts
            result.rows.append(Row.of(f"TTFT of {setting}", label, "s", first, higher_is_better=False, details=about))
            if rounds[0]["answered"] and self.subject.trained:
                right = [statistics.mean(each["found"]) for each in rounds]
                details = {"count": float(sum(len(each["found"]) for each in rounds))}
                result.rows.append(
                    Row.of("answers right", label, "percent", right, higher_is_better=True, details=details)
                )
        times = {row.side: row for row in result.rows if row.unit == "s"}
        result.ratios = [
            Ratio.of(times[label], times[labels[0]], name="TTFT", target=_TARGET if label == labels[-1] else None)
            for label in reversed(labels[1:])
        ]
        result.notes = [
            f"{self.reuse.documents} of {self.reuse.pool} documents of {self.reuse.tokens} tokens or a little more in "
            f"each prompt, in any order; all were read before; {self.reuse.questions} questions a round, each of which "
            "asks for two numbers in two documents",
            *busy_notes([answer for rounds in self.found.values() for answer in rounds]),
        ]
