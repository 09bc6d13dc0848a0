"""The engine benchmark: what it plans, what it refuses, and the processes that it measures."""

from pathlib import Path

import pytest

from headstart.evaluation.engine_plan import EngineBenchSettings, Task, applies, columns, tasks
from headstart.evaluation.machine import MachinePeaks
from headstart.evaluation.random_checkpoint import write_checkpoint
from headstart.evaluation.shape import SHAPES
from headstart.evaluation.sides import BenchmarkError, SideSettings
from headstart.evaluation.worker import SideProcess


def _worker_settings(checkpoint: Path) -> SideSettings:
    return SideSettings(
        side="headstart",
        dtype="float32",
        checkpoint=str(checkpoint),
        threads=1,
        max_length=64,
        max_concurrent_length=32,
        max_sequences=4,
        engine_options={},
    )


def test_default_plan_is_the_promised_one() -> None:
    settings = EngineBenchSettings(threads=2)
    assert [task.name for group in tasks(settings) for task in group] == [
        "prefill 2,048",
        "prefill 8,192",
        "decode at 2,048",
        "32 requests together",
        "32 requests one by one",
    ]
    assert [column.name for column in columns(settings)] == [
        "headstart bfloat16",
        "transformers bfloat16",
        "transformers float32",
        "llama.cpp bfloat16",
    ]
    serial = tasks(settings)[-1][-1]
    assert {column.side for column in columns(settings) if applies(serial, column)} == {"transformers"}


def test_headstart_comes_first_and_float32_is_not_doubled() -> None:
    settings = EngineBenchSettings(threads=1, dtype="float32", sides=("transformers", "headstart"))
    assert [column.name for column in columns(settings)] == ["headstart float32", "transformers float32"]


def test_bounds_are_cost_over_peak() -> None:
    shape = SHAPES["qwen2.5-0.5b"]
    peaks = MachinePeaks(
        threads=2, matmul={"float32": 4e11, "bfloat16": 1e11}, copy_bandwidth=2e10, read_bandwidth=9e10
    )
    prefill, decode = Task("prefill", 2048), Task("decode", 2048, 32)
    bounds = prefill.bounds(shape, 2, peaks)
    assert bounds["floor"] == shape.prefill_flops(2048) / 4e11
    assert prefill.fraction_of_peak(2 * bounds["floor"], bounds) == {"fraction_of_matmul_peak": 0.5}
    # 32 steps read 2049 + 0, ..., 2049 + 31 keys and their own.
    steps = [shape.decode_bytes(2048 + 1 + step, 2) for step in range(32)]
    bounds = decode.bounds(shape, 2, peaks)
    assert bounds["bytes_per_token"] == pytest.approx(sum(steps) / 32)
    assert bounds["floor"] == pytest.approx(2e10 / (sum(steps) / 32))
    assert decode.fraction_of_peak(bounds["floor"] / 4, bounds)["fraction_of_copy_bandwidth"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": "qwen2.5"}, "did you mean 'qwen2.5-0.5b'"),
        ({"sides": ("headstart", "llamacpp")}, "did you mean 'llama.cpp'"),
        ({"sides": ("transformers",)}, "must include headstart"),
        ({"dtype": "float16"}, "bfloat16 or float32"),
        ({"repeats": 0}, "at least 1"),
        ({"prefill": (0,)}, "at least 1"),
        ({"prefill": (40_000,)}, "40001 tokens"),
    ],
)
def test_settings_that_cannot_be_measured(changes: dict, words: str) -> None:
    with pytest.raises(BenchmarkError, match=words):
        EngineBenchSettings(threads=1, **changes)


def test_worker_answers_and_reports_its_memory(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, SHAPES["tiny"], seed=0)
    with SideProcess(_worker_settings(tmp_path)) as worker:
        assert set(worker.versions) == {"headstart", "torch"}
        prompts = [[5, 6, 7], [8, 9, 10]]
        together = worker.call("concurrent", prompts, 6)
        alone = worker.call("serial", prompts, 6)
        decoded = worker.call("decode", prompts, 5)
        assert together["result"]["token_ids"] == alone["result"]["token_ids"]
        written = [ids[:6] for ids in decoded["result"]["token_ids"]]
        assert written == together["result"]["token_ids"]
        assert 0 < together["result"]["value"] <= together["seconds"]
        # The engine's own clock cannot show more tokens per second than the wall's.
        assert decoded["result"]["value"] >= 5 / decoded["seconds"]
        assert together["peak_rss"] > 1 << 20
        with pytest.raises(BenchmarkError, match=r"headstart float32 failed during prefill"):
            worker.call("prefill", [10**9])
        assert worker.call("next_token", prompts[0])["result"][0] == decoded["result"]["token_ids"][0][0]


def test_worker_that_cannot_load_or_dies(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="failed during loading"):
        SideProcess(_worker_settings(tmp_path / "absent"))
    write_checkpoint(tmp_path, SHAPES["tiny"], seed=0)
    with SideProcess(_worker_settings(tmp_path)) as worker:
        worker._process.kill()
        with pytest.raises(BenchmarkError, match="ended with exit code -9 during prefill"):
            worker.call("prefill", [5])
