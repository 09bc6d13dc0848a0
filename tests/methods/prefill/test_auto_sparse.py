"""auto-sparse: where it begins, by its option, by the ledger, or by its card; and whom it drives."""

import pytest

from headstart.errors import MethodError
from headstart.evaluation import ledger
from headstart.evaluation.ledger import Crossover
from headstart.evaluation.machine import describe_machine
from headstart.methods.prefill.auto_sparse import AutoSparse, measured_crossover
from tests.conformance import models
from tests.conformance.lab import make_engine, serve

HIP = "keys=4/query_block=4/sink=2/window=4/dense_layers=0"


class _Entry:
    """As much of a ledger entry as is read."""

    def __init__(self, method, created, **verdicts):
        self.method, self.created, self.machine = method, created, describe_machine()
        self.crossovers = [Crossover.of("TTFT", method, "exact", {int(n[1:]): v for n, v in verdicts.items()})]


@pytest.mark.parametrize("method", ["hip", "minference"])
def test_only_long_contexts_are_sparse(method):
    """Below the crossover nothing is chosen, and the prompts are counted."""
    options = HIP if method == "hip" else "vertical=2/slash=3/sink=1/recent=2/block=4"
    auto = AutoSparse(method, options, crossover=40)
    engine = make_engine(models.PLAIN, auto, max_num_batched_tokens=512)
    serve(engine, [models.ids(20), models.ids(24)])
    assert not any(auto.inner.counters().values())
    assert engine.stats().methods["auto-sparse"]["short_prompts"] == 2
    serve(engine, [models.ids(50)])
    assert any(auto.inner.counters().values())


def test_the_newest_entry_of_this_machine_says_where_it_begins(monkeypatch, tmp_path):
    """Entries of other methods and without a verdict say nothing; one that shows no gain keeps the method out."""
    entries = [
        _Entry("hip", 1, n4096="worse", n8192="better"),
        _Entry("hip", 2, n4096="worse", n8192="worse", n16384="better"),
        _Entry("hip", 3, n4096="unknown"),
        _Entry("minference", 4, n4096="same"),
    ]
    monkeypatch.setattr(ledger, "default_directory", lambda: tmp_path)
    monkeypatch.setattr(ledger, "scan", lambda _: (entries, []))
    assert measured_crossover("hip") == 16384
    assert measured_crossover("lserve") is None
    assert measured_crossover("minference") > 10**12  # type: ignore[operator]
    auto = AutoSparse("hip", HIP)
    make_engine(models.PLAIN, auto)
    assert auto.min_context == 16384 and "16384" in auto.identity()


@pytest.mark.parametrize("method", ["auto-sparse", "lazyllm", "sarathi", "nothing"])
def test_it_drives_selectors_only(method):
    """Anything else is refused in a sentence."""
    with pytest.raises(MethodError) as refusal:
        AutoSparse(method)
    assert "\n" not in str(refusal.value)
