"""Contenders over lengths: turns, dropped warm-ups, what is left out, what an interruption leaves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from headstart.engine.seams import Retention, Selector
from headstart.evaluation import compare_lengths
from headstart.evaluation.compare_lengths import Contender, LengthsRun, LengthsSettings
from headstart.evaluation.compare_peers import LlamaCppSide, TransformersSide
from headstart.evaluation.compare_rounds import busy_notes, duration, interleaved
from headstart.evaluation.compare_subject import Subject
from headstart.evaluation.machine import MachinePeaks
from headstart.evaluation.method_bench_observe import skipped_pairs
from headstart.evaluation.sides import BenchmarkError, HeadstartSide, SideSettings, missing_packages
from headstart.methods.registry import method
from headstart.ops.attention import RaggedLayout, Selection


class Silent:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.steps: list[str] = []
        self.total = 0

    def say(self, text: str) -> None:
        self.said.append(text)

    def begin(self, total: int) -> None:
        self.total = total
        self.steps.clear()

    def step(self, description: str) -> None:
        self.steps.append(description)

    def done(self) -> None:
        pass


class FakeSide:
    """A contender whose costs are a formula, and whose calls are kept in order for all."""

    calls: list[tuple[str, str, int]]

    def __init__(self, label: str, cost: Callable[[int, int], float], calls: list[Any], fail_at: Any = None) -> None:
        self.label, self.cost, self.calls, self.fail_at = label, cost, calls, fail_at
        self.versions = {label: "1"}
        self.prompts: dict[int, list[list[int]]] = {}

    def call(self, name: str, *arguments: Any) -> dict[str, Any]:
        if name == "attended":
            return {"result": 0.25}
        length = len(arguments[0])
        tries = self.prompts.setdefault(length, [])
        self.calls.append((self.label, name, length))
        if self.fail_at is not None and length == self.fail_at[0] and len(tries) >= 1:
            raise self.fail_at[1]
        tries.append(arguments[0])
        if name == "concurrent":
            result: dict[str, Any] = {"value": 2.0, "token_ids": [[1]]}
        else:
            result = {
                "ttft": self.cost(length, len(tries)),
                "decode_rate": 100.0,
                "token_ids": [5, 6],
                "kv_bytes": length * 8,
                "kept": 1.0,
                "device_peak": None,
            }
        return {"result": result, "seconds": 0.1, "peak_rss": 1 << 20, "background_load": 0.0}

    def __enter__(self) -> "FakeSide":
        return self

    def __exit__(self, *_: Any) -> None:
        return


@pytest.fixture
def tiny(tmp_path: Path) -> Subject:
    return Subject.of_shape("tiny", tmp_path / "tiny", seed=0, dtype="float32", device="cpu")


def _run(
    subject: Subject, settings: LengthsSettings, *, fail_at: Any = None, scale: float = 1.0
) -> tuple[LengthsRun, list[Any], Silent]:
    calls: list[Any] = []
    reporter = Silent()
    made = iter(
        [
            # The first call at a length is dear: a warm-up that must be dropped.
            FakeSide("a", lambda n, nth: scale * (n * n / 1e6 + (9.0 if nth == 1 else nth * 1e-6)), calls),
            FakeSide("b", lambda n, nth: scale * (0.02 + n / 1e5 + nth * 1e-6), calls, fail_at),
        ]
    )
    run = LengthsRun(
        subject,
        [Contender("a"), Contender("b", use=("anything",))],
        settings,
        MachinePeaks(threads=1, matmul={"float32": 1e11}, copy_bandwidth=1e10, read_bandwidth=1e10),
        Path(),
        reporter,
        launch=lambda settings: next(made),
    )
    return run, calls, reporter


def test_rounds_are_interleaved_and_warm_ups_dropped(tiny: Subject) -> None:
    run, calls, reporter = _run(tiny, LengthsSettings(lengths=(512, 64, 256), repeats=3, together=(2, 8, 4)))
    result = run.run()
    at_256 = [label for label, name, length in calls if name == "answer" and length == 256]
    # A warm-up of each, then A B A B A B.
    assert at_256 == ["a", "b"] * 4
    assert [length for _, name, length in calls if name == "answer"][4:] == [64] * 8 + [256] * 8 + [512] * 8
    assert len(reporter.steps) == reporter.total
    rows = {(row.name, row.side): row for row in result.rows}
    a, b = rows["TTFT at 256", "a"], rows["TTFT at 256", "b"]
    assert len(a.values) == len(b.values) == 3
    assert max(a.values) < 1 and a.median == pytest.approx(256**2 / 1e6, rel=1e-3)
    assert (a.metric, a.length) == ("TTFT", 256)
    assert rows["attended pairs at 256", "b"].values == [0.25] and ("attended pairs at 256", "a") not in rows
    assert not any(row.metric == "kept keys" for row in result.rows)
    assert any(note.startswith("b at 512 tokens") and "of the matmul peak" in note for note in result.notes)
    assert a.details["flops"] == tiny.costs.prefill_flops(256)  # type: ignore[union-attr]
    assert a.details["floor"] == pytest.approx(a.details["flops"] / 1e11)
    assert a.details["tokens_per_second"] == pytest.approx(256 / a.median)
    assert rows["KV cache at 512", "a"].median == 512 * 8
    assert rows["2 requests together", "a"].values == [4.0] * 3
    ttft = next(c for c in result.crossovers if c.name == "TTFT")
    # n²/1e6 = 0.02 + n/1e5 at about 146 tokens.
    assert (ttft.length, ttft.monotone, ttft.verdicts) == (256, True, ["worse", "better", "better"])
    ratio = next(r for r in result.ratios if r.name == "TTFT at 512")
    assert (ratio.side, ratio.against) == ("b", "a") and ratio.value == pytest.approx(512**2 / 1e6 / 0.02512, rel=1e-2)
    assert result.versions == {"a": "1", "b": "1"} and result.partial is None


def test_all_read_the_same_prompts_that_are_new_in_every_round(tiny: Subject) -> None:
    run, _, _ = _run(tiny, LengthsSettings(lengths=(64,), repeats=2))
    sides: list[FakeSide] = []
    launch = run.launch
    run.launch = lambda settings: sides.append(launch(settings)) or sides[-1]  # type: ignore[func-returns-value]
    run.run()
    a, b = (side.prompts[64] for side in sides)
    assert a == b and len({tuple(prompt) for prompt in a[2:]}) == 3
    assert all(3 <= token < 512 for prompt in a for token in prompt)


def test_default_lengths_suit_the_model_and_the_time(tiny: Subject) -> None:
    assert LengthsSettings().chosen(tiny) == (256, 512, 1024, 1984)
    # At 1 s for 256 tokens the longer ones would take minutes.
    run, _, reporter = _run(tiny, LengthsSettings(), scale=5000.0)
    run.run()
    assert any("would take long" in line and "1,984" in line for line in reporter.said)
    assert {n for n, _ in run.answers} < {256, 512, 1024}
    assert any("will take about" in line for line in reporter.said)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [(KeyboardInterrupt(), "interrupted by Ctrl-C"), (BenchmarkError("b died"), "b died")],
)
def test_what_ends_a_run_keeps_the_complete_lengths(tiny: Subject, failure: BaseException, reason: str) -> None:
    run, _, _ = _run(tiny, LengthsSettings(lengths=(64, 256, 512), repeats=3), fail_at=(512, failure))
    result = run.run()
    assert result.partial == reason
    assert {row.length for row in result.rows if row.metric == "TTFT"} == {64, 256}
    assert all(len(row.values) == 3 for row in result.rows if row.metric and row.unit != "fraction")


def test_nothing_complete_is_an_error(tiny: Subject) -> None:
    run, _, _ = _run(tiny, LengthsSettings(lengths=(64,), repeats=2), fail_at=(64, BenchmarkError("b died")))
    with pytest.raises(BenchmarkError, match="b died"):
        run.run()


def test_lengths_beyond_memory_are_left_out(tiny: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _, reporter = _run(tiny, LengthsSettings(lengths=(64, 1024), repeats=1))
    monkeypatch.setattr(compare_lengths, "free_memory", lambda device: run._memory(64) / 0.79)
    run.run()
    assert any("lack of memory: 1,024" in line for line in reporter.said)
    assert {n for n, _ in run.answers} == {64}
    monkeypatch.setattr(compare_lengths, "free_memory", lambda device: 1000)
    with pytest.raises(BenchmarkError, match="GiB for 2 contenders"):
        run.run()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lengths": (0,)}, "at least 1"),
        ({"repeats": 0}, "at least 1"),
        ({"together": (1, 0, 1)}, "at least 1"),
        ({"lengths": (2040,)}, "beyond the 2048 positions"),
        ({"decode_tokens": 4000}, "no room"),
    ],
)
def test_settings_that_cannot_be_measured(tiny: Subject, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BenchmarkError, match=words):
        LengthsSettings(**changes).chosen(tiny)


def test_turns_and_durations() -> None:
    assert list(interleaved("AB", 2)) == [(0, "A"), (0, "B"), (1, "A"), (1, "B")]
    assert (duration(12.3), duration(200)) == ("12 s", "3 min")
    assert busy_notes([{"seconds": 0.5, "background_load": 1.0}]) == []
    assert "40%" in busy_notes([{"seconds": 2.0, "background_load": 0.4}])[0]


def _settings(subject: Subject, **options: Any) -> SideSettings:
    return SideSettings(
        side="headstart",
        dtype="float32",
        checkpoint=str(subject.path),
        threads=1,
        max_length=400,
        max_concurrent_length=64,
        max_sequences=2,
        engine_options=options,
    )


def test_peers_and_this_engine_answer_alike(tiny: Subject, tmp_path: Path) -> None:
    prompt = tiny.prompt(100, "x")
    ours = HeadstartSide(_settings(tiny)).answer(prompt, 6)
    assert len(ours.token_ids) == 7 and ours.ttft > 0 and ours.decode_rate > 0
    assert ours.kept == 1.0 and ours.device_peak is None
    page = 16 * 2 * tiny.config.num_layers * tiny.config.num_kv_heads * tiny.config.head_dim * 4
    assert ours.kv_bytes == -(-106 // 16) * page
    if not missing_packages("transformers"):
        theirs = TransformersSide(_settings(tiny)).answer(prompt, 6)
        assert theirs.token_ids == ours.token_ids and theirs.kv_bytes == 106 * page // 16
    if not missing_packages("llama.cpp"):
        settings = SideSettings(**{**_settings(tiny).to_json(), "checkpoint": str(tiny.gguf(tmp_path, "float32"))})
        side = LlamaCppSide(settings)
        # Its cache is float16 where speed is measured, so that later tokens may differ.
        assert side.answer(prompt, 6).token_ids[0] == ours.token_ids[0] == side.next_token(prompt)[0]


class _LastPage(Selector):
    """Looks at the first page and its own."""

    def select(self, spec: Any, q: torch.Tensor, keys: torch.Tensor, layout: RaggedLayout) -> Selection:
        pages = torch.zeros(
            len(layout.query_lengths), max(layout.query_lengths), spec.num_kv_heads, 64, dtype=torch.bool
        )
        for s, (queries, kv) in enumerate(zip(layout.query_lengths, layout.kv_lengths, strict=True)):
            for row in range(queries):
                pages[s, row, :, 0] = True
                pages[s, row, 0, (kv - queries + row) // layout.page_size] = True
        return Selection(pages, 1)


class _FirstKeys(Retention):
    """Keeps the first 32 keys of a prompt that has been read."""

    def retain(self, sequence: Any, store: Any) -> torch.Tensor | None:
        return torch.arange(32) if sequence.num_computed >= sequence.num_prompt and sequence.kv_length > 32 else None


@pytest.fixture
def toys():
    from headstart.methods import registry

    registry.catalogue()
    before = dict(registry._METHODS)
    wrap = {"selector": method("toy-selector", stage="prefill", paper=None, exact=False)(_LastPage)}
    wrap["retention"] = method("toy-retention", stage="cache", paper=None, exact=False)(_FirstKeys)
    yield wrap
    registry._METHODS.clear()
    registry._METHODS.update(before)


def test_attended_share_counts_every_causal_pair(tiny: Subject, toys: Any) -> None:
    side = HeadstartSide(_settings(tiny, use=[_LastPage()], max_num_batched_tokens=30))
    length, size = 70, 16
    seen = {0: 0, 1: 0}
    for position in range(length):
        own = position // size * size
        seen[0] += len(set(range(min(size, position + 1))) | set(range(own, position + 1)))
        seen[1] += min(size, position + 1)
    share = side.attended(tiny.prompt(length, "x"))
    assert share == pytest.approx((seen[0] + seen[1]) / 2 / (length * (length + 1) / 2))
    assert HeadstartSide(_settings(tiny)).attended([5, 6]) is None
    # The selector is itself again.
    assert "select" not in vars(side.llm.engine.stack.methods[0])


def test_skipped_pairs_of_everything_and_nothing() -> None:
    layout = RaggedLayout([5, 1], [21, 40], [[0, 1], [2, 3, 4]], 16)
    pairs = sum(21 - 5 + row + 1 for row in range(5)) + 40
    assert skipped_pairs(Selection(torch.ones(2, 3, 2, 3, dtype=torch.bool), 2), layout) == 0
    assert skipped_pairs(Selection(torch.zeros(2, 3, 2, 3, dtype=torch.bool), 2), layout) == pairs


def test_kept_share_and_bytes_are_those_of_the_cache(tiny: Subject, toys: Any) -> None:
    answer = HeadstartSide(_settings(tiny, use=[_FirstKeys()])).answer(tiny.prompt(128, "x"), 4)
    assert answer.kept == pytest.approx(32 / 128)


def test_distance_of_an_exact_stack_is_zero_and_of_a_lossy_one_is_not(tiny: Subject, toys: Any) -> None:
    prompt, more = tiny.prompt(100, "x"), tiny.prompt(8, "y")
    exact = HeadstartSide(_settings(tiny, use=["sarathi-serve:chunk=16"])).divergence(prompt, more)
    assert exact["kl"] < 1e-6 and exact["top1"] == 100.0
    lossy = HeadstartSide(_settings(tiny, use=[_LastPage()])).divergence(prompt, more)
    assert lossy["kl"] > 1e-3 and lossy["max_kl"] >= lossy["kl"]
