"""Benches on the rig: pairs, costs, verdicts, and what is refused."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headstart.errors import HeadstartError
from headstart.evaluation.ledger import Row
from headstart.evaluation.rig.baseline import MODEL, arm_recipe
from headstart.evaluation.rig.bench import run_rig, run_rig_bench
from headstart.evaluation.rig.corpus import RigCorpus, RigError, build_corpus
from headstart.evaluation.rig.result import RigResult
from headstart.evaluation.rig.runner import TrainedArm, token_losses, train_arm
from headstart.evaluation.rig.spec import Expectation, Metric, RigArm, RigBench, RigPhase
from headstart.methods import registry
from headstart.methods.pretrain import meco_bench
from headstart.training.documents import Document
from headstart.training.flops import training_flops
from headstart.training.metrics import read_metrics

SMALL: dict[str, Any] = {"train_bytes": 20_000, "held_out_bytes": 2_000}
PHASE: dict[str, Any] = {"sequence_length": 128, "global_batch_tokens": 256}
THIN = {"model": {"config": MODEL["config"] | {"hidden_size": 48, "intermediate_size": 64}}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> RigCorpus:
    return build_corpus(tmp_path_factory.mktemp("corpus"), ("novels", "code"), None, **SMALL)


def early(arm: TrainedArm) -> Mapping[str, float]:
    return {"early": float(np.mean([losses[:4].mean() for losses in arm.losses(arm.corpus.held_out("code"))]))}


@pytest.fixture(scope="module")
def result() -> RigResult:
    """A twin of the baseline, one that learns a hundred times slower, one with half the width."""
    slow = {"optimizer": {"name": "adamw", "lr": 2e-5, "embedding_lr": 2e-5}}
    bench = RigBench(
        arms={"twin": RigArm(), "slow": RigArm((RigPhase(changes=slow),)), "narrow": RigArm(changes=THIN)},
        metrics=(Metric("early"),),
        measure=early,
        expectations=(Expectation("twin", "held-out loss", "same"), Expectation("slow", "early", "better")),
        sources=("novels", "code"),
        phase=PHASE,
        notes=("a note",),
    )
    return run_rig(bench, (0, 1, 2), steps=8, **SMALL)


def test_equal_arms_are_equal_to_the_bit(result: RigResult) -> None:
    """Weights and data of a seed are those of the baseline; seeds differ."""
    twin, baseline = result.arms["twin"].metrics, result.arms["baseline"].metrics
    assert twin == baseline and len(set(baseline["held-out loss"])) == 3
    found = result.comparison("twin", "held-out loss")
    assert found.difference.verdict == "same" and found.equal == ("tokens", "FLOPs")
    assert "(as expected)" in found.sentence


def test_a_bad_arm_is_worse(result: RigResult) -> None:
    """And an expectation that fails is shown as one."""
    assert result.comparison("slow", "held-out loss").difference.verdict == "worse"
    assert "worse (expected: better)" in result.comparison("slow", "early").sentence


def test_other_flops_get_a_baseline_of_their_own(result: RigResult) -> None:
    """At equal tokens, and again at equal FLOPs; which of them is said."""
    rival = "baseline at the FLOPs of narrow"
    assert list(result.arms) == ["baseline", "twin", "slow", "narrow", rival]
    costs = {name: values.costs for name, values in result.arms.items()}
    assert costs["narrow"].flops < 0.7 * costs["baseline"].flops
    assert costs["narrow"].tokens == costs["baseline"].tokens > costs[rival].tokens
    assert costs["narrow"].parameters < costs["baseline"].parameters
    assert result.comparison("narrow", "held-out loss").equal == ("tokens",)
    # Steps are whole, and eight of them are few.
    assert abs(costs[rival].flops / costs["narrow"].flops - 1) < 0.3


def test_rows_and_sentences(result: RigResult) -> None:
    """Rows are the ledger's, and hold what a ledger can: finite numbers; the table has a line for each arm."""
    rows = result.rows()
    assert {row.side for row in rows} == set(result.arms)
    for row in rows:
        again = Row.of(row.name, row.side, row.unit, row.values, higher_is_better=row.higher_is_better)
        assert again.median == row.median and row.details["n"] == 3
        assert json.loads(row.model_dump_json())["details"]["mean"] == pytest.approx(np.mean(row.values))
    table = result.table()
    assert len(table) == 1 + len(result.arms) and all(len(line) == len(table[0]) for line in table)
    assert "a note" in result.sentences() and any("paired t" in line for line in result.sentences())


def test_costs_are_those_of_the_loop(corpus: RigCorpus, tmp_path: Path) -> None:
    """Tokens, predicted tokens and FLOPs against the metrics that the run itself wrote."""
    recipe = arm_recipe(RigArm(), corpus, 5, steps=3, phase=PHASE | {"packing": "complete"})
    trained = train_arm("baseline", recipe.model_copy(update={"log_every": 1}), corpus, tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert trained.costs.tokens == lines[-1]["tokens"] == 3 * 256
    assert trained.costs.trained_tokens == sum(line["trained_tokens"] for line in lines)
    whole = training_flops(trained.network, [128]) * 6
    assert 0.8 * whole < trained.costs.flops <= whole, "documents are shorter than rows"


def test_token_losses_by_hand(corpus: RigCorpus, tmp_path: Path) -> None:
    """Each document alone, token by token, in Transformers."""
    from transformers import AutoModelForCausalLM

    trained = train_arm("x", arm_recipe(RigArm(), corpus, 0, steps=1, phase=PHASE), corpus, tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(trained.export(), dtype=torch.float32)
    documents = [*corpus.held_out("code")[:3], *corpus.held_out("novels")[:2]]
    half = Document(documents[0].token_ids, np.arange(len(documents[0])) > 20, "half")
    for document, losses in zip([*documents, half], trained.losses([*documents, half]), strict=True):
        ids = torch.tensor([[0, *document.token_ids.tolist(), 1]])
        with torch.no_grad():
            logs = model(ids).logits[0, :-1].double().log_softmax(-1)
        expected = -logs.gather(1, ids[0, 1:, None])[:, 0].numpy()
        kept = np.ones(len(expected), bool) if document.trained is None else np.append(document.trained, True)
        assert losses == pytest.approx(expected[kept], abs=1e-4)
    assert token_losses(trained.network, [Document(np.empty(0, np.int32), None, "empty")], 0, 1) == []


def test_arms_become_recipes(corpus: RigCorpus) -> None:
    """Shares become steps that sum up; later phases go on with optimizer and schedule."""
    arm = RigArm((RigPhase(0.9, ("meco",)), RigPhase(0.1, changes={"packing": "complete"})), tokens=1.5)
    first, second = arm_recipe(arm, corpus, 3, steps=7).phases
    assert (first.steps, second.steps) == (9, 1)
    assert first.use == ("meco",) and first.optimizer and not second.use and second.optimizer is None
    assert (first.packing, second.packing) == ("split", "complete")
    assert set(first.sources) == set(corpus.names)


@pytest.mark.parametrize(
    ("arm", "sentence"),
    [
        (RigArm((RigPhase(0.5),)), "sum up to 0.5"),
        (RigArm((RigPhase(0.99), RigPhase(0.01))), "phase 2 of an arm has no step of 8"),
        (RigArm((RigPhase(changes={"packng": "split"}),)), "unknown key 'phases.0.packng'; did you mean 'packing'"),
        (RigArm((RigPhase(use=("mecco",)),)), "no method 'mecco'; did you mean 'meco'"),
        (RigArm((RigPhase(use=("sarathi",)),)), "sarathi"),
    ],
)
def test_arms_that_cannot_be_meant(arm: RigArm, sentence: str) -> None:
    """One sentence each."""
    with pytest.raises(HeadstartError, match=sentence):
        run_rig(RigBench({"arm": arm}, sources=("novels",), phase=PHASE), (0,), steps=8, **SMALL)


def test_benches_that_cannot_be_meant() -> None:
    """No bench, no seed, a seed twice, a figure that comes and goes."""
    with pytest.raises(RigError, match="sarathi has no bench on the rig"):
        run_rig_bench(registry.card("sarathi"))
    bench = RigBench({}, sources=("novels",), phase=PHASE)
    for seeds in ((), (1, 1)):
        with pytest.raises(RigError, match="one or more seeds, each once"):
            run_rig(bench, seeds)
    fickle = replace(bench, measure=lambda arm: {"odd": 1.0} if arm.seed else {})
    with pytest.raises(RigError, match="measured 'odd' of baseline for some seeds only"):
        run_rig(fickle, (0, 1), steps=1, **SMALL)


def test_the_bench_of_meco(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short run of all of it: every arm has every figure, and the line is counted in the tokens."""
    monkeypatch.delenv("HEADSTART_DATA", raising=False)
    monkeypatch.setattr(meco_bench, "SAMPLES", 2)
    monkeypatch.setattr(meco_bench, "SAMPLE_TOKENS", 8)
    lines: list[str] = []
    bench = replace(meco_bench.bench(), phase={**PHASE, "packing": "complete"})
    found = run_rig(bench, (0,), lines.append, key="meco", steps=10, **SMALL)
    assert set(found.arms) == {"baseline", "meco", "no cooldown", "fixed line"}
    names = {metric.name for metric in found.metrics}
    for name, values in found.arms.items():
        assert names <= set(values.metrics)
        shown = values.metrics["loss with the line"] != values.metrics["held-out loss"]
        assert shown == (name != "baseline")
        assert 0 <= values.metrics["steering accuracy"][0] <= 1
    costs = {name: values.costs for name, values in found.arms.items()}
    assert costs["meco"].tokens == costs["baseline"].tokens
    assert costs["no cooldown"].trained_tokens < costs["meco"].trained_tokens < costs["baseline"].trained_tokens
    assert {each.difference.verdict for each in found.comparisons} == {"not shown at this scale"}
    assert len(lines) == 1 + 4


def test_the_classifier_knows_the_sources(corpus: RigCorpus) -> None:
    """On held-out excerpts, of which it saw no work."""
    decode = corpus.tokenizer.decode
    texts = {name: [decode(d.token_ids.tolist()) for d in corpus.train(name)] for name in corpus.names}
    classify = meco_bench.Trigrams(texts)
    for name in corpus.names:
        right = [classify(decode(d.token_ids.tolist())) == name for d in corpus.held_out(name)]
        assert np.mean(right) > 0.8
