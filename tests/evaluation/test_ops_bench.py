"""The benchmark of single ops: every case is right, and what it says follows from its figures."""

import pytest
import torch

from headstart.errors import HeadstartError
from headstart.evaluation import ops_bench
from headstart.evaluation.machine import MachinePeaks
from headstart.evaluation.ops_bench import OpsBenchSettings, measure, run_ops_bench
from headstart.evaluation.ops_cases import SOURCES
from headstart.evaluation.ops_shapes import OURS, OpCase

SMALL = {"shape": "tiny", "decode": (1, 3), "prefill": (20,), "device": "cpu", "repeats": 1}
PEAKS = MachinePeaks(threads=1, matmul={"float32": 1e9}, copy_bandwidth=1e8, read_bandwidth=1e8)


class Silent:
    """Hears nothing."""

    def say(self, text: str) -> None: ...

    def begin(self, total: int) -> None: ...

    def step(self, description: str) -> None: ...

    def done(self) -> None: ...


@pytest.mark.parametrize("name", SOURCES)
def test_every_side_is_right(name: str) -> None:
    for case in SOURCES[name](OpsBenchSettings(**SMALL).shapes):
        assert next(iter(case.sides)) == OURS
        inputs = case.make()
        expected = case.reference(*(x.double() if x.is_floating_point() else x.clone() for x in inputs))
        for side, run in case.sides.items():
            off = ops_bench.error(run(*(x.clone() for x in inputs)), expected)
            # The plain draw goes by another order where nothing is left out.
            assert off < 1e-2 or (case.op == "draw" and side != OURS), f"{case.op}, {case.shape}, {side}: {off}"


def test_figures_follow_from_costs_and_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_bench, "_timer", lambda run, *_: lambda: 0.5 if run is exact else 0.25)

    def exact(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    sides = {"headstart": exact, "rough": lambda x: x * 2.2}
    case = OpCase("double", "3", lambda: (torch.ones(3),), sides, exact, flops=1e8, bytes=2e7)
    ours, rough = measure(case, OpsBenchSettings(**SMALL), PEAKS)
    assert (ours.name, ours.median, ours.details["error"]) == ("double, 3", 0.5, 0.0)
    assert ours.details["floor"] == pytest.approx(0.2)
    assert ours.details["fraction_of_bandwidth"] == pytest.approx(0.4)
    assert ours.details["fraction_of_matmul"] == pytest.approx(0.2)
    assert rough.details["error"] == pytest.approx(0.1)


def test_an_entry_holds_all_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_bench, "measure_peaks", lambda *_: PEAKS)
    settings = OpsBenchSettings(**{**SMALL, "ops": ("norm",)})
    entry = run_ops_bench(settings, Silent(), command="headstart bench ops")
    assert entry.kind == "ops" and len(entry.rows) == 2 * len(entry.ratios) == 12
    assert {ratio.against for ratio in entry.ratios} == {"torch"}


@pytest.mark.parametrize("wrong", [{"shape": "tinny"}, {"ops": ("norms",)}, {"dtype": "int8"}, {"device": "tpu"}])
def test_what_is_not_there_is_said(wrong: dict) -> None:
    with pytest.raises(HeadstartError):
        OpsBenchSettings(**{**SMALL, **wrong})
