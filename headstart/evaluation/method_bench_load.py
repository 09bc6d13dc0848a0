"""A method under load beside its baseline: two servers take turns, paced below what they can do and with a queue."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import NoReturn

from headstart.engine.watch import Step
from headstart.evaluation.capacity.loads import LEAST_REQUESTS, LoadShape
from headstart.evaluation.compare_figures import ratios_of
from headstart.evaluation.compare_lengths import Contender
from headstart.evaluation.compare_rounds import INTERRUPTED, Reporter, duration
from headstart.evaluation.compare_subject import Subject, free_memory
from headstart.evaluation.ledger import Ratio, Row
from headstart.evaluation.load.result import LoadResult, to_rows
from headstart.evaluation.load.run import run_load
from headstart.evaluation.load.served import ServedModel
from headstart.evaluation.load.settings import Lengths, LoadSettings
from headstart.evaluation.method_bench_spec import Load
from headstart.evaluation.sides import BenchmarkError
from headstart.evaluation.timeline import Timeline, read_steps, timelines

_PAGE = 16
_MOST_SEQUENCES, _LEAST_SEQUENCES = 32, 4
_CACHE_SHARE = 0.2
_PROBE_TOKENS = 4096
# So many requests of a trace tell its mean lengths.
_TRACED = 200
# Of the latencies with a queue only these say something: how long the queue is decides the others.
_QUEUED = ("output throughput", "requests answered", "TPOT p50", "ITL p99")


@dataclass
class LoadOutcome:
    """What was measured: rows, ratios to the first contender, and the first round's loads and steps for pictures."""

    rows: list[Row] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    paced: dict[str, LoadResult] = field(default_factory=dict)
    timelines: list[Timeline] = field(default_factory=list)
    partial: str | None = None


@dataclass
class LoadRun:
    """Rounds of load.

    Args:
        subject: the model.
        contenders: stacks of this engine; the others are compared with the first, whose speed sets the pace.
        load: what is asked.
        repeats: rounds that count.
        seed: of arrivals, lengths and prompts, with the round.
        threads: of each server.
        directory: where the requests of every load are kept, as JSON lines; None keeps none.
        reporter: hears how it goes on.
        trace: of the paced arrivals and lengths (default: drawn ones).
    """

    subject: Subject
    contenders: Sequence[Contender]
    load: Load
    repeats: int
    seed: int
    threads: int
    directory: Path | None
    reporter: Reporter
    trace: Path | None = None
    steps: dict[str, list[Step]] = field(default_factory=dict)
    results: dict[tuple[str, str], list[LoadResult]] = field(default_factory=lambda: defaultdict(list))

    def run(self) -> LoadOutcome:
        """Measure; Ctrl-C and a server that dies keep the rounds that are complete.

        Raises:
            HeadstartError: a trace that cannot be used.
            BenchmarkError: a server does not start, or nothing was complete when one died.
            KeyboardInterrupt: nothing was complete yet.
        """
        if self.trace is not None:
            # What is wrong with it is said before servers start.
            self._traced(_TRACED, None)
        with ExitStack() as stack:
            urls = {c.label: stack.enter_context(self._server(c)).url for c in self.contenders}
            paced, queued = self._warm_up(urls)
            why = self._measure(urls, paced, queued)
        self.reporter.done()
        return self._finish(why, paced)

    def _measure(self, urls: dict[str, str], paced: LoadSettings, queued: LoadSettings) -> str | None:
        """The rounds; returns why they ended early, if they did."""
        # A B paced, A B with a queue, and again: neighbours in time are compared.
        parts = product(range(self.repeats), (("paced", paced), ("queued", queued)), urls)
        try:
            for round_, (part, settings), label in parts:
                self.reporter.step(f"round {round_ + 1}, {part}: {label}")
                result = self._put(replace(settings, seed=self.seed + round_), urls[label], part, label, round_)
                if round_ == 0 and part == "paced" and result.origin is not None:
                    self.steps[label] = read_steps(urls[label], result.origin)
                if result.partial:
                    return result.partial if result.ended_by else f"{label}: {result.partial}"
                self.results[part, label].append(result)
        except KeyboardInterrupt:
            return INTERRUPTED
        return None

    def _server(self, contender: Contender) -> ServedModel:
        """A server whose cache is the same for all contenders, and holds the queue."""
        self.reporter.say(f"starting a server: {contender.label}")
        config, size = self.subject.config, self.subject.itemsize
        per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * size
        most = self._lengths()[0].high + self.load.output_tokens[1]
        share = free_memory(self.subject.device) * _CACHE_SHARE / len(self.contenders)
        sequences = int(min(max(share // (most * per_token), _LEAST_SEQUENCES), _MOST_SEQUENCES))
        probe = min(self.subject.longest, _PROBE_TOKENS)
        pages = sequences * -(-most // _PAGE) + -(-probe // _PAGE) + 1
        options = [str(self.subject.path), "--dtype", self.subject.dtype, "--device", self.subject.device]
        options += ["--max-num-seqs", str(sequences), "--num-pages", str(pages)]
        options += ["--max-model-len", str(max(most + 1, probe))]
        options += ["--load-format", "dummy"] if self.subject.dummy else []
        for use in contender.use:
            options += ["--use", use]
        return ServedModel(options, threads=self.threads)

    def _lengths(self) -> tuple[Lengths, Lengths]:
        """Prompt and answer lengths that the model has room for.

        Raises:
            BenchmarkError: it has not.
        """
        low, high = self.load.output_tokens
        room = min(self.subject.longest - high - 1, self.load.most_input)
        if room < 2:
            raise BenchmarkError(f"{self.subject.name} has no room for a prompt beside {high} tokens of answer")
        shares = [max(1, int(room * share)) for share in self.load.input_tokens]
        return Lengths(*shares), Lengths(low, high)

    def _traced(self, requests: int, vocab: int | None) -> LoadShape:
        """The first requests of the trace, cut to what the model has room for."""
        longest = [lengths.high for lengths in self._lengths()]
        settings = LoadSettings(
            trace=str(self.trace), max_input=longest[0], max_output=longest[1], seed=self.seed, warmup=1, vocab=vocab
        )
        return LoadShape.of(settings, requests)

    def _warm_up(self, urls: dict[str, str]) -> tuple[LoadSettings, LoadSettings]:
        """A short queue on every server, which is dropped; what the first answers sets the pace of all."""
        prompts, answers = self._lengths()
        # Random weights come with words that nobody writes: their ids are given instead.
        vocab = None if self.subject.trained else self.subject.config.vocab_size
        traced = None if self.trace is None else self._traced(_TRACED, vocab)
        if traced is not None:
            prompts, answers = traced.means
        common = LoadSettings(input_tokens=prompts, output_tokens=answers, seed=self.seed + 1000, warmup=1, vocab=vocab)
        first = replace(common, users=self.load.users, num_requests=self.load.users)
        rates, service = [], 0.0
        for label, url in urls.items():
            self.reporter.step(f"warm-up: {label}")
            result = self._put(first, url, "warm-up", label, None)
            if result.partial:
                _refuse(result.partial if result.ended_by else f"{label}: {result.partial}")
            rates.append(result.summary.request_rate)
            service = max(service, 1 / max(result.summary.request_rate, 1e-9))
        arrivals, queue = (max(part, self.load.depth * service) for part in self.load.seconds)
        rate = float(f"{self.load.pace * rates[0]:.2g}")
        paced = replace(common, rate=rate, cv=self.load.cv, duration=arrivals, probe=True)
        if traced is not None:
            count = max(LEAST_REQUESTS, round(rate * arrivals))
            paced = replace(self._traced(count, vocab).settings_at(rate), probe=True)
            arrivals = count / rate
        queued = replace(common, users=self.load.users, duration=queue)
        # The last answers, and the second that the probe runs alone.
        each = arrivals + queue + 2 * self.load.users * service + 2.0
        self.reporter.begin(2 * len(urls) * self.repeats)
        self.reporter.say(
            f"{rate:g} requests per second, {self.load.pace:.0%} of what {next(iter(urls))} answers with a queue; the "
            f"measurement will take about {duration(each * len(urls) * self.repeats)}"
        )
        return paced, queued

    def _put(self, settings: LoadSettings, url: str, part: str, label: str, round_: int | None) -> LoadResult:
        file = None
        if self.directory is not None and round_ is not None:
            place = [contender.label for contender in self.contenders].index(label)
            file = self.directory / f"{part}-{round_ + 1}-{place}.jsonl"
            file.unlink(missing_ok=True)
        return run_load(settings, url, file=file)

    def _finish(self, why: str | None, paced: LoadSettings) -> LoadOutcome:
        labels = [contender.label for contender in self.contenders]
        parts = ("paced", "queued")
        rounds = min(len(self.results[part, label]) for part in parts for label in labels)
        if not rounds:
            _refuse(why)
        outcome = LoadOutcome(partial=why)
        for label in labels:
            outcome.rows += to_rows(self.results["paced", label][:rounds], label)
        for label in labels:
            rows = to_rows(self.results["queued", label][:rounds], label)
            outcome.rows += [r.model_copy(update={"name": f"{r.name} (queue)"}) for r in rows if r.name in _QUEUED]
        outcome.ratios = ratios_of(outcome.rows, labels)
        outcome.timelines = timelines(self.steps)
        outcome.paced = {label: self.results["paced", label][0] for label in labels}
        outcome.notes = self._notes(paced, labels)
        return outcome

    def _notes(self, paced: LoadSettings, labels: Sequence[str]) -> list[str]:
        if self.trace is None:
            what = (
                f"{paced.rate:g} requests per second with spread {paced.cv:g}, prompts of {paced.input_tokens} and "
                f"answers of {paced.output_tokens} tokens"
            )
        else:
            what = (
                f"the first {paced.num_requests} requests of {self.trace.name}, {paced.fast_forward:.3g} times as "
                f"fast, prompts cut to {paced.max_input} and answers to {paced.max_output} tokens"
            )
        found = [
            f"paced: {what}, over HTTP, beside one long decode (the probe); queue: requests "
            f"{'of the mean lengths ' if self.trace else ''}from {self.load.users} users without a pause",
        ]
        for label in labels:
            notes = [note for part in ("paced", "queued") for r in self.results[part, label] for note in r.notes()]
            found += [f"{label}: {note}" for note in dict.fromkeys(notes) if "not exact" not in note]
        return found


def _refuse(why: str | None) -> NoReturn:
    """End a run that has nothing to show."""
    if why == INTERRUPTED:
        raise KeyboardInterrupt
    raise BenchmarkError(f"nothing was measured: {why}")
