"""How well a model does under a stack of methods: tasks at several lengths, text, and distance from the exact stack."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import Any, Protocol

from headstart.engine.llm import LLM
from headstart.errors import HeadstartError
from headstart.evaluation import ledger
from headstart.evaluation.machine import describe_machine
from headstart.evaluation.quality_divergence import divergence, exact_twin, forced_logits
from headstart.evaluation.quality_lm_eval import SHARES, lm_eval_scores
from headstart.evaluation.quality_prompts import Prompts, answer, judged
from headstart.evaluation.quality_report import QualityReport, Score, mean_score, standard_error
from headstart.evaluation.quality_results import Record, ResultFile
from headstart.evaluation.quality_settings import BITS, BLIMP, CONTEXT, LM_EVAL, LOGITS, PROBES, QualitySettings
from headstart.evaluation.quality_text import (
    Window,
    bits_and_bytes,
    blimp_pairs,
    bucket_edges,
    held_out_documents,
    prefers_good,
    random_windows,
    tail_bits,
    token_logprobs,
    windows,
)
from headstart.evaluation.tasks import Example, MissingDataError, Task, TooShortError, task
from headstart.methods import registry

# One picture needs a needle at several depths, whatever the count.
_DEPTHS_AT_LEAST = 5
_BATCH = 8
_CONTINUATION = 32
_BLIMP_BATCH = 32


class Reporter(Protocol):
    """Hears how far a run is."""

    def begin(self, total: int) -> None:
        """So many pieces of work lie ahead."""
        ...

    def step(self, description: str, done: int) -> None:
        """This is being worked on; `done` further pieces are finished."""
        ...

    def scored(self, score: Score) -> None:
        """A task is finished at a length."""
        ...


@dataclass
class Run:
    """One run of the settings on a model."""

    llm: LLM
    settings: QualitySettings
    results: ResultFile
    reporter: Reporter

    def scores(self) -> Iterable[Score]:
        """The scores, one after another, as they are found.

        Raises:
            HeadstartError: an unknown task, or a length beyond what the model serves.
        """
        self.check()
        self.reporter.begin(sum(self._contexts(key) for key, _ in self.measured()))
        for key, length in self.measured():
            try:
                score = self._score(key, length)
            except (MissingDataError, TooShortError) as error:
                score = Score(task=key, length=length, skipped=str(error))
                self.reporter.step(key, self._contexts(key))
            self.reporter.scored(score)
            yield score

    def check(self) -> None:
        """Refuse lengths that this model does not serve.

        Raises:
            HeadstartError: a length beyond what the model serves.
        """
        most = self.llm.max_model_len
        beyond = next((length for length in self.settings.lengths if length > most), None)
        if beyond is not None:
            raise HeadstartError(
                f"a length of {beyond} tokens is beyond the {most} that this model serves; leave it out, or raise "
                "--max-model-len if the model can tell more positions apart"
            )

    def measured(self) -> list[tuple[str, int]]:
        """The tasks with their lengths, in the order in which they run."""
        return [(key, length) for key in self.settings.keys for length in self._lengths(key)]

    def work(self) -> list[tuple[int, int]]:
        """(prompt tokens, output tokens) of each example that is still to run, roughly; for an estimate of time."""
        found = []
        for key, length in self.measured():
            left = max(0, self._contexts(key) - len(self.results.find(key, length)))
            found += [(length or 40, 1 if key in PROBES else 100)] * left
        return found

    def _lengths(self, key: str) -> tuple[int, ...]:
        return (0,) if key == BLIMP or key.startswith(LM_EVAL) else self.settings.lengths

    def _contexts(self, key: str) -> int:
        count = self.settings.count
        return max(count, _DEPTHS_AT_LEAST) if key == "niah_depth" else 67 * count if key == BLIMP else count

    def _score(self, key: str, length: int) -> Score:
        if key == LOGITS:
            return self._logits(length)
        if key == BITS:
            return self._bits(length)
        if key == CONTEXT:
            return self._context(length)
        if key == BLIMP:
            return self._blimp()
        if key.startswith(LM_EVAL):
            return self._lm_eval(key)
        return self._task(task(key, self.settings.sources), length)

    def _task(self, task: Task, length: int) -> Score:
        """Generate for all examples, in batches; the turns of one context one after another."""
        done = self.results.find(task.key, length)
        count = self._contexts(task.key) * task.questions_per_context
        if not all(index in done for index in range(count)):
            prompts = Prompts(self.llm, self.settings.chat)
            fitting = length - prompts.overhead * task.questions_per_context
            examples = task.examples(self.llm.tokenizer, fitting, self._contexts(task.key), self.settings.seed)
            waiting: list[tuple[int, Example]] = []
            room = max(1, min(_BATCH, self._cached_tokens() // length)) * task.questions_per_context
            for index, example in enumerate(examples):
                if index not in done:
                    waiting.append((index, example))
                if len(waiting) >= room:
                    self._answer(task, length, waiting, prompts)
                    waiting = []
            self._answer(task, length, waiting, prompts)
        found = self.results.find(task.key, length)
        records = [found[index] for index in range(count) if index in found]
        return mean_score(task.key, length, records, task.metric)

    def _answer(self, task: Task, length: int, waiting: list[tuple[int, Example]], prompts: Prompts) -> None:
        """Run examples and keep what came of them."""
        for turn in sorted({len(example.history) for _, example in waiting}):
            batch = [(index, example) for index, example in waiting if len(example.history) == turn]
            self.reporter.step(f"{task.key} at {length:,}", 0)
            outputs = answer(self.llm, prompts, [example for _, example in batch])
            for (index, example), output in zip(batch, outputs, strict=True):
                self.results.add(judged(task, length, index, example, output))
        contexts = len({example.context_id for _, example in waiting})
        self.reporter.step(f"{task.key} at {length:,}", contexts)

    def _logits(self, length: int) -> Score:
        """KL and top-1 agreement with the exact stack, over continuations of real text."""
        done = self.results.find(LOGITS, length)
        left = [index for index in range(self.settings.count) if index not in done]
        if left:
            found = self._windows(length)
            exact = exact_twin(self.llm.engine, length)
            for index in left:
                window = found[index % len(found)].token_ids
                self._compare(exact, index, length, window)
        records = [record for index, record in self.results.find(LOGITS, length).items() if index < self.settings.count]
        kl = [record.score for record in records]
        rows = {name: sum(r.values[name] for r in records) / len(records) for name in records[0].values}
        return Score(
            task=LOGITS,
            length=length,
            unit="nats",
            metric="mean KL divergence of next-token distributions from the exact stack's",
            count=len(records),
            score=sum(kl) / len(kl),
            error=standard_error(kl),
            values=rows,
        )

    def _compare(self, exact: Any, index: int, length: int, window: list[int]) -> None:
        self.reporter.step(f"{LOGITS} at {length:,}", 0)
        given = min(_CONTINUATION, len(window) // 2)
        prompt, continuation = window[:-given], window[-given:]
        sides = [forced_logits(engine, prompt, continuation) for engine in (exact, self.llm.engine)]
        found = divergence(*sides)
        values = {
            "top1": found.top1,
            "first_kl": found.kl[0],
            "first_top1": 100.0 * found.agree[0],
            "max_kl": max(found.kl),
        }
        self.results.add(Record(LOGITS, length, index, found.mean_kl, values))
        self.reporter.step(f"{LOGITS} at {length:,}", 1)

    def _bits(self, length: int) -> Score:
        """Bits per byte of held-out text, in all and by position."""
        done = self.results.find(BITS, length)
        if not all(index in done for index in range(self.settings.count)):
            # One position is left for the token that every request generates.
            found = self._windows(length - 1)
            for index, window in enumerate(found):
                if index not in done:
                    self._measure(index, length, window)
        records = [record for index, record in self.results.find(BITS, length).items() if index < self.settings.count]
        edges = bucket_edges(length)
        names = [f"{low}-{high}" for low, high in pairwise(edges)]
        totals = {name: [sum(r.values[name][side] for r in records) for side in (0, 1)] for name in names}
        size = sum(total[1] for total in totals.values())
        rates = [record.score for record in records]
        return Score(
            task=BITS,
            length=length,
            unit="bits per byte",
            metric="bits per byte of held-out text, by position in tokens",
            count=len(records),
            score=sum(total[0] for total in totals.values()) / size,
            error=standard_error(rates),
            groups={"position": {name: bits / count for name, (bits, count) in totals.items() if count}},
        )

    def _measure(self, index: int, length: int, window: Window) -> None:
        self.reporter.step(f"{BITS} at {length:,}", 0)
        (logprobs,) = token_logprobs(self.llm, [window.token_ids])
        edges = bucket_edges(length)
        measured = bits_and_bytes(window, logprobs, length)
        names = [f"{low}-{high}" for low, high in pairwise(edges)]
        rate = sum(bits for bits, _ in measured) / max(1, sum(size for _, size in measured))
        self.results.add(Record(BITS, length, index, rate, dict(zip(names, map(list, measured), strict=True))))
        self.reporter.step(f"{BITS} at {length:,}", 1)

    def _context(self, length: int) -> Score:
        """Bits per byte of the same tokens at every length: those that end the longest windows."""
        shortest, longest = min(self.settings.lengths), max(self.settings.lengths)
        # Which tokens these are depends on the lengths, which may differ between runs that share results.
        key = f"{CONTEXT}:{shortest}-{longest}"
        done = self.results.find(key, length)
        if not all(index in done for index in range(self.settings.count)):
            for index, window in enumerate(self._windows(longest - 1)):
                if index not in done:
                    self.reporter.step(f"{CONTEXT} at {length:,}", 0)
                    self.results.add(
                        Record(key, length, index, tail_bits(self.llm, window, length - 1, shortest // 2), {})
                    )
                    self.reporter.step(f"{CONTEXT} at {length:,}", 1)
        found = self.results.find(key, length)
        records = [record for index, record in found.items() if index < self.settings.count]
        score = mean_score(CONTEXT, length, records, "bits per byte of the same tokens after so long a context")
        return score.model_copy(update={"unit": "bits per byte"})

    def _blimp(self) -> Score:
        """Accuracy over minimal pairs, by field."""
        pairs = blimp_pairs(self.settings.sources.data, self.settings.count, self.settings.seed)
        done = self.results.find(BLIMP, 0)
        left = [index for index in range(len(pairs)) if index not in done]
        for start in range(0, len(left), _BLIMP_BATCH):
            batch = left[start : start + _BLIMP_BATCH]
            self.reporter.step(BLIMP, 0)
            for index, good in zip(batch, prefers_good(self.llm, [pairs[i] for i in batch]), strict=True):
                pair = pairs[index]
                groups = {"field": pair.field, "paradigm": pair.paradigm}
                asked = "which sentence is likelier"
                output = pair.good if good else pair.bad
                self.results.add(Record(BLIMP, 0, index, 100.0 * good, {}, groups, asked, pair.good, output))
            self.reporter.step(BLIMP, len(batch))
        found = self.results.find(BLIMP, 0)
        return mean_score(BLIMP, 0, [found[index] for index in range(len(pairs))], "minimal pairs told apart")

    def _lm_eval(self, key: str) -> Score:
        """A task of lm-evaluation-harness; `count` is its limit."""
        self.reporter.step(key, 0)
        metric, score, values = lm_eval_scores(self.llm, key.removeprefix(LM_EVAL), self.settings.count)
        self.reporter.step(key, self.settings.count)
        share = metric in SHARES
        return Score(
            task=key,
            length=0,
            unit="percent" if share else "as lm_eval gives it",
            metric=metric,
            count=self.settings.count,
            score=100 * score if share else score,
            values=values,
        )

    def _windows(self, length: int) -> list[Window]:
        """Held-out text, or random tokens for a model without a tokenizer."""
        engine, settings = self.llm.engine, self.settings
        if engine.tokenizer is None:
            return random_windows(engine.vocab_size, length, settings.count, settings.seed)
        _, documents = held_out_documents(settings.text, settings.sources.data)
        return windows(engine.tokenizer, documents, length, settings.count)

    def _cached_tokens(self) -> int:
        store = self.llm.engine.store
        return store.num_pages * store.page_size


def report(
    run: Run, scores: list[Score], *, command: str, seconds: float, complete: bool, now: Callable[[], Any] = ledger.now
) -> QualityReport:
    """What a run found, with everything needed to repeat it."""
    commit, dirty = ledger.code_version()
    engine = run.llm.engine
    return QualityReport(
        model=engine.checkpoint.name,
        use=[registry.describe(method) for method in engine.stack.methods],
        exact=engine.exact,
        settings=run.settings.dump(),
        command=command,
        commit=commit,
        dirty=dirty,
        created=now(),
        machine=describe_machine(),
        versions={name: found for name in ("headstart", "torch", "tokenizers") if (found := _version(name))},
        seconds=round(seconds, 1),
        complete=complete,
        scores=scores,
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
