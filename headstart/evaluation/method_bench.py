"""What a method is worth: its baseline and itself side by side in one run, cost and quality together."""

import importlib
import json
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import headstart
from headstart.checkpoints.default import embedded_checkpoints
from headstart.evaluation import ledger
from headstart.evaluation.compare_lengths import Contender, LengthsResult, LengthsRun, LengthsSettings
from headstart.evaluation.compare_quality import QualityAsk, QualityRun, check_ask
from headstart.evaluation.compare_rounds import INTERRUPTED, Reporter
from headstart.evaluation.compare_subject import Subject
from headstart.evaluation.ledger import Crossover, LedgerEntry, Ratio, Row
from headstart.evaluation.ledger_sources import source_digests
from headstart.evaluation.load.result import LoadResult
from headstart.evaluation.machine import MachinePeaks, describe_machine, measure_peaks
from headstart.evaluation.method_bench_load import LoadRun
from headstart.evaluation.method_bench_spec import (
    Load,
    MethodBench,
    OfflineLengths,
    Own,
    OwnAsk,
    Quality,
    Rig,
    Workload,
    bench_of,
)
from headstart.evaluation.sides import BenchmarkError
from headstart.evaluation.timeline import Timeline
from headstart.methods import registry

_OWN_VERSIONS = {"headstart": headstart.__version__, "torch": torch.__version__}
# Three show only large differences beyond noise.
_ROUNDS = 5
_QUALITY_LENGTHS = (512, 1024)
_QUICK_LENGTHS = (64, 128, 256)


@dataclass(frozen=True)
class MethodBenchSettings:
    """What is measured.

    Args:
        use: the method, with options as `--use` takes them.
        model: checkpoint directory or hub id (default: the model of the package).
        shape: random weights of this shape instead of a model.
        lengths: of prompts, for methods that are measured over lengths, and of quality (default: the method's).
        repeats: rounds that count (default: 5); seeds of a training method (default: 3).
        seed: of prompts, arrivals and examples; the first of a training method's.
        threads: of every side (default: what suits the model).
        dtype, device: of the model (default: the checkpoint's, and an accelerator if there is one).
        trace: of arrivals and lengths, replayed at the pace of a load; the queue has its mean lengths.
        data: directory with texts and evaluation sets.
        quick: a few small measurements that show that it works.
    """

    use: str
    model: str | None = None
    shape: str | None = None
    lengths: tuple[int, ...] = ()
    repeats: int | None = None
    seed: int = 0
    threads: int | None = None
    dtype: str | None = None
    device: str | None = None
    trace: Path | None = None
    data: Path | None = None
    quick: bool = False

    def __post_init__(self) -> None:
        counts = (*self.lengths, self.repeats, self.threads)
        if any(count is not None and count < 1 for count in counts):
            raise BenchmarkError("lengths, repeats and threads must all be at least 1")
        if self.seed < 0:
            raise BenchmarkError(f"seed must be at least 0, not {self.seed}")
        if self.model is not None and self.shape is not None:
            raise BenchmarkError("a model has its own shape: leave out --model or --shape")


@dataclass
class Measured:
    """What the workloads found, one after another."""

    rows: list[Row] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    crossovers: list[Crossover] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    loads: dict[str, LoadResult] = field(default_factory=dict)
    timelines: list[Timeline] = field(default_factory=list)
    partial: str | None = None
    seeds: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """The ledger entry, with what pictures and pages are made of.

    Attributes:
        spec: how the method was measured.
        card: its card.
        sides: baseline and method, as rows name them.
        loads: the first round of load by side; empty without one.
    """

    entry: LedgerEntry
    spec: MethodBench
    card: registry.MethodCard
    sides: tuple[str, str]
    loads: dict[str, LoadResult]


def run_method_bench(
    settings: MethodBenchSettings, reporter: Reporter, *, command: str, key: str | None = None, out: Path | None = None
) -> Outcome:
    """Measure a method beside its baseline, as its `bench()` or its slots say.

    Args:
        settings: what is measured.
        reporter: hears how it goes on.
        command: what a user types to measure again.
        key: of the entry (default: the method's).
        out: where single requests of loads are kept; None keeps none.

    Raises:
        HeadstartError: an unknown or planned method, a model that cannot be had, or a side that failed before anything
            was measured.
        KeyboardInterrupt: before anything was measured.
    """
    card = registry.card(settings.use.partition(":")[0].strip())
    spec = bench_of(card)
    ledger.check_key(key or card.key)
    if spec.needs_gpu and not (_on_gpu(settings.device) or settings.quick):
        raise BenchmarkError(
            f"{card.key} is measured on a GPU, which is not there or not asked for: --quick shows that it works here"
        )
    # Wrong options are said before a model loads.
    method = registry.build(settings.use, kind="training" if card.kind == "training" else "inference")
    if settings.trace is not None and not any(isinstance(workload, Load) for workload in spec.workloads):
        raise BenchmarkError(f"{card.key} is not measured under load, which is what a trace is for: leave out --trace")
    commit, dirty = ledger.code_version()
    sides = (" ".join(spec.baseline) or "exact", settings.use)
    own = spec.trained if settings.model is None and settings.shape is None else None
    checkpoint = None if own is None else embedded_checkpoints()[own]
    contenders = (Contender(sides[0], use=spec.baseline), Contender(sides[1], "headstart", (settings.use,), checkpoint))
    with tempfile.TemporaryDirectory(prefix="headstart-bench-") as directory:
        bench = _Bench(settings, spec, contenders, Path(directory), reporter, out)
        measured = bench.run(card)
    if own is not None:
        measured.notes.append(f"{sides[1]} runs {own}, which it made of the model that {sides[0]} runs")
    methods = [type(method), *(type(registry.build(use)) for use in spec.baseline)]
    entry = LedgerEntry(
        kind="method",
        key=key or card.key,
        method=card.key,
        model=bench.model,
        command=command,
        commit=commit,
        dirty=dirty,
        created=ledger.now(),
        machine=describe_machine(),
        peaks=bench.peaks,
        versions={"python": platform.python_version(), **measured.versions},
        seeds=measured.seeds or [settings.seed],
        settings=_as_json(
            {
                **asdict(settings),
                "data": None,
                "trace": settings.trace and settings.trace.name,
                "baseline": spec.baseline,
                "workloads": bench.described,
            }
        ),
        sources=source_digests(methods),
        rows=measured.rows,
        ratios=_by_headline(measured.ratios, spec.headline),
        crossovers=measured.crossovers,
        notes=measured.notes,
        timelines=measured.timelines,
        partial=measured.partial,
    )
    return Outcome(entry, spec, card, sides, measured.loads)


def _add(found: LengthsResult, measured: Measured) -> None:
    measured.rows += found.rows
    measured.ratios += found.ratios
    measured.crossovers += found.crossovers
    measured.notes += found.notes
    measured.versions |= _OWN_VERSIONS | found.versions
    measured.partial = found.partial


def _by_headline(ratios: Sequence[Ratio], headline: Sequence[str]) -> list[Ratio]:
    """The most telling ratio first: of a metric over lengths, that of the longest."""
    places = {name: place for place, name in enumerate(headline)}

    def place(item: tuple[int, Ratio]) -> tuple[int, int]:
        at, ratio = item
        metric = ratio.name.rpartition(" at ")[0] or ratio.name
        return places.get(ratio.name, places.get(metric, len(places))), -at if metric in places else at

    return [ratio for _, ratio in sorted(enumerate(ratios), key=place)]


def _on_gpu(device: str | None) -> bool:
    return torch.cuda.is_available() and not (device or "cuda").startswith("cpu")


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(settings, default=str))


@dataclass
class _Bench:
    """One run: the workloads in turn, on one model."""

    settings: MethodBenchSettings
    spec: MethodBench
    contenders: tuple[Contender, Contender]
    directory: Path
    reporter: Reporter
    out: Path | None
    peaks: MachinePeaks | None = None
    model: str | None = None
    described: list[dict[str, Any]] = field(default_factory=list)

    def run(self, card: registry.MethodCard) -> Measured:
        """All workloads; what ends one early ends the run, and keeps what is there."""
        measured = Measured()
        subject = None
        if any(not isinstance(workload, Rig) for workload in self.spec.workloads):
            subject = self._subject()
            self.model = subject.name
        for workload in self.spec.workloads:
            self.described.append({"workload": type(workload).__name__, **asdict(workload)})
            try:
                if subject is None:
                    self._train(card, measured)
                else:
                    self._measure(workload, subject, measured)
            except (KeyboardInterrupt, BenchmarkError) as error:
                if not measured.rows:
                    raise
                measured.partial = str(error) or INTERRUPTED
            if measured.partial is not None:
                break
        return measured

    def _subject(self) -> Subject:
        settings = self.settings
        if settings.shape is not None:
            return Subject.of_shape(
                settings.shape,
                self.directory / "checkpoint",
                seed=settings.seed,
                dtype=settings.dtype,
                device=settings.device,
                dummy=self._draws_weights,
            )
        return Subject.of_model(settings.model, dtype=settings.dtype, device=settings.device)

    @property
    def _draws_weights(self) -> bool:
        """Whether servers draw the weights of a shape: a load asks for nothing else, and a GPU holds what takes minutes
        to write."""
        under_load = any(isinstance(workload, Load) for workload in self.spec.workloads)
        return under_load and self.settings.shape is not None and _on_gpu(self.settings.device)

    def _measure(self, workload: Workload, subject: Subject, measured: Measured) -> None:
        if isinstance(workload, OfflineLengths):
            self._over_lengths(workload, subject, measured)
        elif isinstance(workload, Load):
            self._under_load(workload, subject, measured)
        elif isinstance(workload, Quality) and subject.dummy:
            measured.notes.append("quality was not measured: the servers drew their weights")
        elif isinstance(workload, Quality):
            self._quality(workload, subject, measured)
        elif isinstance(workload, Own):
            self._own(workload, subject, measured)

    def _over_lengths(self, workload: OfflineLengths, subject: Subject, measured: Measured) -> None:
        settings = self.settings
        asked = LengthsSettings(
            lengths=settings.lengths or (_QUICK_LENGTHS if settings.quick else workload.lengths),
            decode_tokens=8 if settings.quick else workload.decode_tokens,
            together=None if settings.quick else workload.together,
            repeats=settings.repeats or (2 if settings.quick else _ROUNDS),
            seed=settings.seed,
            threads=settings.threads,
        )
        asked.chosen(subject)
        self.reporter.say("measuring the machine's peaks")
        effort = "quick" if settings.quick else "short"
        self.peaks = measure_peaks(settings.threads or subject.threads, effort, subject.device)
        found = LengthsRun(subject, self.contenders, asked, self.peaks, self.directory, self.reporter).run()
        _add(found, measured)

    def _own(self, workload: Own, subject: Subject, measured: Measured) -> None:
        settings = self.settings
        torch.set_num_threads(settings.threads or subject.threads)
        repeats = settings.repeats or (1 if settings.quick else _ROUNDS)
        ask = OwnAsk(subject, settings.use, repeats, settings.seed, settings.quick, self.reporter)
        _add(importlib.import_module(workload.module).measure(ask), measured)

    def _under_load(self, workload: Load, subject: Subject, measured: Measured) -> None:
        settings = self.settings
        if settings.quick:
            small: dict[str, Any] = {"seconds": (1.5, 0.5), "users": 3, "depth": 0}
            workload = replace(workload, **small, input_tokens=(0.2, 0.3), output_tokens=(8, 16))
        found = LoadRun(
            subject=subject,
            contenders=self.contenders,
            load=workload,
            trace=settings.trace,
            repeats=settings.repeats or (1 if settings.quick else _ROUNDS),
            seed=settings.seed,
            threads=settings.threads or subject.threads,
            directory=self.out,
            reporter=self.reporter,
        ).run()
        measured.rows += found.rows
        measured.ratios += found.ratios
        measured.notes += found.notes
        measured.loads = found.paced
        measured.timelines = found.timelines
        measured.versions |= _OWN_VERSIONS
        measured.partial = found.partial

    def _quality(self, workload: Quality, subject: Subject, measured: Measured) -> None:
        settings = self.settings
        tasks = workload.tasks if subject.trained and subject.tokenizer is not None else ()
        # A stack that is exact like its baseline has only its distance to show.
        contenders = self.contenders if tasks else self.contenders[1:]
        ask = QualityAsk(
            tasks=tasks[:1] if settings.quick else tasks,
            lengths=self._quality_lengths(workload, subject),
            count=1 if settings.quick else workload.count,
            seed=settings.seed,
            data=settings.data,
        )
        ask = check_ask(ask, subject, contenders)
        run = QualityRun(subject, contenders, ask, settings.threads or subject.threads, self.reporter)
        found = run.run()
        measured.rows += found.rows
        measured.notes += found.notes
        measured.versions |= found.versions
        measured.partial = found.partial

    def _quality_lengths(self, workload: Quality, subject: Subject) -> tuple[int, ...]:
        """As asked for, else the method's, else what the model serves."""
        if self.settings.quick:
            return (min(256, subject.longest - 1),)
        asked = self.settings.lengths or workload.lengths or _QUALITY_LENGTHS
        return tuple(min(length, subject.longest - 1) for length in asked)

    def _train(self, card: registry.MethodCard, measured: Measured) -> None:
        # Training is heavy to import, and most benches need none.
        from headstart.evaluation.method_bench_rig import train_on_rig

        settings = self.settings
        result = train_on_rig(card, settings.seed, settings.repeats, settings.data, settings.quick, self.reporter)
        measured.rows += result.rows()
        measured.notes += result.sentences()
        measured.seeds = list(result.seeds)
        measured.versions |= _OWN_VERSIONS
        self.described[-1] |= dict(result.settings)
