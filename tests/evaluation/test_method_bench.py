"""How methods are measured: by their slots or their own say, with what goes wrong on the way."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from headstart.engine.seams import Scheduler
from headstart.engine.watch import Step
from headstart.errors import HeadstartError
from headstart.evaluation import method_bench, method_bench_load
from headstart.evaluation.compare_lengths import Contender
from headstart.evaluation.compare_subject import Subject
from headstart.evaluation.ledger import Ratio, Row
from headstart.evaluation.load.records import RequestRecord
from headstart.evaluation.load.result import LoadResult
from headstart.evaluation.load.settings import LoadSettings
from headstart.evaluation.load.target import Target
from headstart.evaluation.machine import MachinePeaks
from headstart.evaluation.method_bench import MethodBenchSettings, _by_headline, run_method_bench
from headstart.evaluation.method_bench_load import LoadRun
from headstart.evaluation.method_bench_spec import Load, MethodBench, OfflineLengths, Quality, Rig, bench_of
from headstart.evaluation.plots import draw_steps
from headstart.evaluation.sides import BenchmarkError, HeadstartSide, SideSettings
from headstart.evaluation.timeline import STEPS, Timeline, timelines
from headstart.methods import registry
from headstart.methods.registry import MethodCard


class Silent:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.steps: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def begin(self, total: int) -> None:
        pass

    def step(self, description: str) -> None:
        self.steps.append(description)

    def done(self) -> None:
        pass


class _Plain(Scheduler):
    """A class that stands for a method's."""

    def schedule(self, step: Any) -> None:
        raise NotImplementedError


class _Special(_Plain):
    """One that says itself how it is measured."""

    spec: ClassVar[MethodBench] = MethodBench(("prefill-first",), (OfflineLengths((64,)),), ("decode",))

    @classmethod
    def bench(cls) -> MethodBench:
        return cls.spec


def _card(**changes: Any) -> MethodCard:
    return replace(MethodCard("some", stage="prefill", paper=None, implementation=_Plain), **changes)


def test_the_default_follows_the_slots() -> None:
    scheduler = bench_of(_card(slots=("scheduler",)))
    assert scheduler.baseline == ("prefill-first",) and isinstance(scheduler.workloads[0], Load)
    assert bench_of(_card(key="prefill-first", slots=("scheduler",))).baseline == ()
    for slot in ("attention.prefill", "selector.prefill", "prefill", "retention", "kv_layout", "linear"):
        spec = bench_of(_card(slots=(slot,), exact=False))
        cost, quality = spec.workloads
        assert spec.baseline == () and isinstance(cost, OfflineLengths)
        assert isinstance(quality, Quality) and quality.tasks
    exact = bench_of(_card(slots=("attention.decode",))).workloads[1]
    # An exact method is held to its distance from the exact stack.
    assert isinstance(exact, Quality) and exact.tasks == ()
    assert bench_of(_card(kind="training", exact=None)).workloads == (Rig(),)


def test_a_method_may_say_it_itself() -> None:
    assert bench_of(_card(implementation=_Special)) is _Special.spec


def test_what_cannot_be_measured() -> None:
    with pytest.raises(BenchmarkError, match="planned"):
        bench_of(_card(implementation=None))
    with pytest.raises(BenchmarkError, match="only measures"):
        bench_of(_card(kind="analysis", exact=None))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use": "sarathi-serv"}, "did you mean 'sarathi-serve'"),
        ({"use": "sarathi-serve:chnk=1"}, "did you mean 'chunk'"),
        ({"use": "sarathi-serve:chunk=0"}, "at least 1"),
        ({"use": "not-yet"}, "planned"),
        ({"model": "/nowhere"}, "no directory"),
        ({"shape": "tinny"}, "did you mean 'tiny'"),
        ({"model": "a", "shape": "tiny"}, "leave out"),
        ({"repeats": 0}, "at least 1"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_input_is_said_before_anything_runs(
    changes: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.catalogue()
    monkeypatch.setitem(registry._METHODS, "not-yet", _card(key="not-yet", implementation=None))
    with pytest.raises(HeadstartError, match=words) as caught:
        run_method_bench(MethodBenchSettings(**{"use": "sarathi-serve", **changes}), Silent(), command="c")
    assert "\n" not in str(caught.value)


def test_a_key_that_names_no_file_is_refused_first() -> None:
    with pytest.raises(HeadstartError, match="ledger key"):
        run_method_bench(MethodBenchSettings("sarathi-serve"), Silent(), command="c", key="../up")


def test_the_most_telling_ratio_comes_first() -> None:
    def ratio(name: str) -> Ratio:
        a, b = (Row.of(name, side, "s", [1.0], higher_is_better=False) for side in "ab")
        return Ratio.of(a, b)

    names = ("TTFT at 64", "decode at 64", "TTFT at 1,024", "decode at 1,024", "E2E p50", "ITL p99")
    found = _by_headline([ratio(name) for name in names], ("ITL p99", "TTFT"))
    assert [r.name for r in found[:3]] == ["ITL p99", "TTFT at 1,024", "TTFT at 64"]


class _Server:
    """Stands for a server process."""

    def __init__(self, options: list[str], threads: int | None = None) -> None:
        self.url = options[options.index("--use") + 1] if "--use" in options else "plain"

    def __enter__(self) -> "_Server":
        return self

    def __exit__(self, *_: Any) -> None:
        return


def _result(settings: LoadSettings, url: str) -> LoadResult:
    """Eight answered requests, whose gaps are ten times as long on the server called slow."""
    gap = 0.1 if url == "prefill-first" else 0.01
    records = [
        RequestRecord(
            kind="load",
            index=i,
            at=i / 4,
            sent=i / 4,
            end=i / 4 + 1,
            status="ok",
            asked_input=8,
            asked_output=4,
            first=i / 4 + 0.2,
            gaps=[gap * (1 + settings.seed / 100)] * 3,
        )
        for i in range(8)
    ]
    return LoadResult(settings, url, Target("m"), "now", records, origin=1.0)


def _steps(seconds: float) -> list[Step]:
    """Decodes, with a prompt in every tenth step of the second half."""
    return [Step(n + 1, n * seconds, seconds, 64 if n > 500 and n % 10 == 0 else 0, 3, 3, 0, 0, 0) for n in range(1000)]


@pytest.fixture
def load_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadRun:
    monkeypatch.setattr(method_bench_load, "ServedModel", _Server)
    monkeypatch.setattr(method_bench_load, "read_steps", lambda url, origin: _steps(0.1 if "first" in url else 0.09))
    subject = Subject.of_shape("tiny", tmp_path / "tiny", seed=0, device="cpu")
    sides = [Contender(name, use=(name,)) for name in ("prefill-first", "sarathi-serve")]
    return LoadRun(subject, sides, Load(), 3, 7, 1, None, Silent())


def test_load_rounds_take_turns_at_one_pace(load_run: LoadRun, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, LoadSettings]] = []

    def run_load(settings: LoadSettings, url: str, *, file: Path | None = None) -> LoadResult:
        seen.append((url, settings))
        return _result(settings, url)

    monkeypatch.setattr(method_bench_load, "run_load", run_load)
    outcome = load_run.run()
    assert [url for url, _ in seen] == ["prefill-first", "sarathi-serve"] * 7
    warm, measured = seen[:2], seen[2:]
    assert all(settings.users for _, settings in warm)
    for first, second in zip(measured[::2], measured[1::2], strict=True):
        assert first[1] == second[1]
    paced = [settings for _, settings in measured if settings.rate is not None]
    assert len(paced) == 6 and all(s.probe and s.rate == paced[0].rate for s in paced)
    assert [s.seed for s in paced] == [7, 7, 8, 8, 9, 9]
    rows = {(row.name, row.side): row for row in outcome.rows}
    slow, fast = rows["ITL p99", "prefill-first"], rows["ITL p99", "sarathi-serve"]
    assert slow.values == pytest.approx([0.107, 0.108, 0.109]) and len(fast.values) == 3
    assert "output throughput (queue)" in {row.name for row in outcome.rows}
    assert next(r for r in outcome.ratios if r.name == "ITL p99").value == pytest.approx(10)
    assert set(outcome.paced) == {"prefill-first", "sarathi-serve"} and outcome.partial is None
    assert [line.side for line in outcome.timelines] == ["prefill-first", "sarathi-serve"]


def test_timelines_show_the_same_time_where_most_is_read(tmp_path: Path) -> None:
    slow, fast = timelines({"slow": _steps(0.1), "fast": _steps(0.08), "silent": []})
    assert len(slow.began) == STEPS and sum(slow.prefill) == 64 * STEPS // 10
    assert slow.began[0] > 50 - 0.1 * STEPS and fast.side == "fast"
    assert 0 <= fast.began[0] - slow.began[0] < 0.1
    assert timelines({"silent": []}) == []
    early = [replace(step, began=step.began - 20) for step in _steps(0.1)]
    late = _steps(0.1)
    both = timelines({"early": early, "late": late})
    assert all(line.began[0] >= 0 for line in both), "nothing is shown of a time that one side has forgotten"
    assert abs(both[0].began[0] - both[1].began[0]) <= 0.1
    picture = draw_steps(both, tmp_path / "steps")
    assert {path.name for path in picture.files.values()} == {"steps.png", "steps.svg"}
    with pytest.raises(ValueError, match="the timeline of 'odd' needs the same of each of its steps"):
        Timeline(side="odd", began=[0.0], seconds=[], prefill=[1], decode=[0])


def test_a_trace_sets_arrivals_and_lengths(load_run: LoadRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    lines = [f"2023-11-16 18:15:{n / 2:010.7f},{100 + 50 * (n % 3)},{4 + n % 2}" for n in range(60)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]))
    load_run.trace = trace
    seen: list[LoadSettings] = []

    def run_load(settings: LoadSettings, url: str, *, file: Path | None = None) -> LoadResult:
        seen.append(settings)
        return _result(settings, url)

    monkeypatch.setattr(method_bench_load, "run_load", run_load)
    outcome = load_run.run()
    paced, queued = seen[2], seen[4]
    assert paced.trace == str(trace) and paced.probe and paced.rate is None and paced.fast_forward > 0
    assert queued.users and (queued.input_tokens.low, queued.output_tokens.low) in {(150, 4), (150, 5)}
    assert "requests of trace.csv" in outcome.notes[0]


def test_a_trace_that_cannot_be_used_is_said_first(load_run: LoadRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method_bench_load, "ServedModel", None)
    load_run.trace = Path("missing.csv")
    with pytest.raises(HeadstartError, match=r"the trace missing\.csv cannot be read"):
        load_run.run()
    settings = MethodBenchSettings("minference", trace=Path("missing.csv"), shape="tiny")
    with pytest.raises(BenchmarkError, match="minference is not measured under load"):
        run_method_bench(settings, Silent(), command="")


def test_a_load_that_ends_early_keeps_the_complete_rounds(load_run: LoadRun, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def run_load(settings: LoadSettings, url: str, *, file: Path | None = None) -> LoadResult:
        done.append(url)
        result = _result(settings, url)
        # The second round's queue breaks on the second server.
        result.partial = "the server has stopped answering" if len(done) == 10 else None
        return result

    monkeypatch.setattr(method_bench_load, "run_load", run_load)
    outcome = load_run.run()
    assert outcome.partial == "sarathi-serve: the server has stopped answering"
    assert {len(row.values) for row in outcome.rows} == {1}


def test_ctrl_c_before_the_first_round_leaves_nothing(load_run: LoadRun, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def run_load(settings: LoadSettings, url: str, *, file: Path | None = None) -> LoadResult:
        calls.append(url)
        result = _result(settings, url)
        if len(calls) == 4:
            result.partial, result.ended_by = "interrupted by Ctrl-C", 2
        return result

    monkeypatch.setattr(method_bench_load, "run_load", run_load)
    with pytest.raises(KeyboardInterrupt):
        load_run.run()
    assert len(calls) == 4


def test_a_run_that_is_cut_short_in_its_second_workload_keeps_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row.of("TTFT at 64", "exact", "s", [1.0], higher_is_better=False)

    def over_lengths(self: Any, workload: Any, subject: Any, measured: Any) -> None:
        measured.rows.append(row)

    def quality(self: Any, workload: Any, subject: Any, measured: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(method_bench._Bench, "_under_load", over_lengths)
    monkeypatch.setattr(method_bench._Bench, "_quality", quality)
    outcome = run_method_bench(MethodBenchSettings("sarathi-serve"), Silent(), command="c")
    assert outcome.entry.partial == "interrupted by Ctrl-C" and outcome.entry.rows == [row]


class _InProcess:
    """A stack of this engine in this process, called as one in a process of its own."""

    def __init__(self, settings: SideSettings) -> None:
        self.side = HeadstartSide(settings)
        self.versions = self.side.versions()

    def call(self, name: str, *arguments: Any) -> dict[str, Any]:
        found = getattr(self.side, name)(*arguments)
        found = vars(found) if hasattr(found, "__dict__") else found
        return {"result": found, "seconds": 0.0, "peak_rss": 1, "background_load": 0.0}

    def __enter__(self) -> "_InProcess":
        return self

    def __exit__(self, *_: Any) -> None:
        return


def test_a_method_over_lengths_shows_cost_and_quality_together(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = MethodBench((), (OfflineLengths(), Quality(tasks=("bits_per_byte",))), ("TTFT", "decode"))
    peaks = MachinePeaks(threads=1, matmul={"float32": 1e11}, copy_bandwidth=1e10, read_bandwidth=1e10)
    monkeypatch.setattr(method_bench, "bench_of", lambda card: spec)
    monkeypatch.setattr(method_bench, "measure_peaks", lambda *_: peaks)
    monkeypatch.setattr(method_bench, "LengthsRun", partial(method_bench.LengthsRun, launch=_InProcess))
    monkeypatch.setattr(method_bench, "QualityRun", partial(method_bench.QualityRun, launch=_InProcess))
    settings = MethodBenchSettings("sarathi-serve:chunk=100", quick=True, device="cpu", dtype="float32")
    entry = run_method_bench(settings, Silent(), command="c").entry
    rows = {(row.name, row.side): row for row in entry.rows}
    sides = ("exact", "sarathi-serve:chunk=100")
    for side in sides:
        for length in (64, 128, 256):
            assert rows[f"TTFT at {length}", side].median > 0
        assert 0 < rows["bits_per_byte at 256", side].median < 8
    assert rows["KL from exact at 256", sides[1]].median < 1e-6
    assert entry.ratios[0].name == "TTFT at 256" and entry.peaks == peaks
    assert [crossover.name for crossover in entry.crossovers] == ["TTFT", "decode"]
    assert [w["workload"] for w in entry.settings["workloads"]] == ["OfflineLengths", "Quality"]  # type: ignore[index,union-attr]
    assert entry.model == "the built-in model"


def test_a_training_method_goes_to_the_rig(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADSTART_DATA", raising=False)
    reporter = Silent()
    outcome = run_method_bench(MethodBenchSettings("meco", quick=True, seed=3), reporter, command="c")
    entry = outcome.entry
    assert (entry.kind, entry.key, entry.method, entry.model) == ("method", "meco", "meco", None)
    assert entry.seeds == [3] and "headstart/methods/pretrain/meco.py" in entry.sources
    assert {"baseline", "meco"} <= {row.side for row in entry.rows if row.name == "held-out loss"}
    assert any("not shown at this scale" in note for note in entry.notes)
    assert any("more to train" in line for line in reporter.said)


def test_every_method_with_code_says_how_it_is_measured() -> None:
    for card in registry.catalogue(status="implemented"):
        if card.kind != "analysis":
            spec = bench_of(card)
            assert spec.workloads
            for use in spec.baseline:
                registry.build(use)
