"""Placements: every split is tried, the link decides, and the verdict says which way."""

import pytest

from headstart.evaluation.capacity.loads import LoadShape
from headstart.evaluation.load.settings import Lengths, LoadSettings
from headstart.evaluation.simulate.cost import SimulationError, StepCost
from headstart.evaluation.simulate.placement import Cluster, Goodput, Placement, choose, goodput, placements, verdict
from headstart.evaluation.simulate.run import Link
from headstart.evaluation.simulate.worker import WorkerSettings

# A step of a long prompt takes hundreds of milliseconds, one of decodes ten: what disaggregation is for.
COST = StepCost((1, 64, 2048), (0.010, 0.020, 0.500), 1e-9, 1e-8, 1e-5)
FAST = Link(1e11, 1e-3, 100_000)


def _shape() -> LoadShape:
    settings = LoadSettings(input_tokens=Lengths(256, 1024), output_tokens=Lengths(16, 64), seed=1)
    return LoadShape.of(settings, 60)


def _cluster(link: Link = FAST) -> Cluster:
    return Cluster(COST, WorkerSettings(4000, max_num_batched_tokens=2048), link)


def test_every_split_is_an_option() -> None:
    names = [str(item) for item in placements(4, ["orca", "sarathi-serve"])]
    assert names == [
        *("4 x orca", "4 x sarathi-serve"),
        *("prefill=1,decode=3", "prefill=2,decode=2", "prefill=3,decode=1"),
    ]
    assert all(item.workers == 4 for item in placements(4, ["orca"]))
    assert [str(item) for item in placements(1, ["orca"])] == ["1 x orca"]
    with pytest.raises(SimulationError, match="at least 1 worker, not 0"):
        placements(0, ["orca"])


def test_apart_pays_against_whole_prompts_under_a_tight_bound_and_not_over_a_slow_link() -> None:
    shape, options = _shape(), placements(2, ["prefill-first"])
    tight = choose(_cluster(), options, shape, ttft=3.0, tpot=0.02, start=1.0)
    assert str(tight[0].placement) == "prefill=1,decode=1" and "it pays" in verdict(tight)
    assert 0 < tight[0].transfer < 0.05 and tight[0].attainment >= 0.9
    slow = choose(_cluster(Link(2e7, 0.1, 100_000)), options, shape, ttft=3.0, tpot=0.02, start=1.0)
    assert "it does not pay" in verdict(slow) or "no placement meets" in verdict(slow)
    loose = choose(_cluster(), options, shape, ttft=30.0, tpot=2.0, start=1.0)
    assert loose[0].placement.replicas == 2 and "it does not pay" in verdict(loose)


def test_goodput_grows_with_looser_bounds_and_more_workers() -> None:
    shape, cluster = _shape(), _cluster()
    one, two = Placement(replicas=1), Placement(replicas=2)
    strict = goodput(cluster, one, shape, 2.0, 0.2, 1.0).rate
    assert goodput(cluster, one, shape, 4.0, 0.4, 1.0).rate >= strict > 0
    assert goodput(cluster, two, shape, 2.0, 0.2, 1.0).rate > 1.4 * strict


def test_verdicts_where_there_is_little_to_say() -> None:
    apart, together = Placement(prefill=1, decode=1), Placement(replicas=2)
    nothing = [Goodput(apart, 0.0, 0.1, 0.0), Goodput(together, 0.0, 0.2, 0.0)]
    assert "no placement meets both bounds" in verdict(nothing)
    assert "nothing to compare" in verdict([Goodput(Placement(replicas=1), 1.0, 1.0, 0.0)])
    assert "none of the rate" in verdict([Goodput(apart, 0.0, 0.1, 0.0), Goodput(together, 1.0, 0.9, 0.0)])
