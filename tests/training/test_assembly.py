"""Compiled and recomputing networks are the same network, for the loss, its gradients and the export."""

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from headstart.checkpoints.reader import load_checkpoint
from headstart.errors import HeadstartError
from headstart.models.decoder import Decoder
from headstart.training.assembly import (
    OPTIMIZERS,
    SCHEDULES,
    build_named,
    build_network,
    checkpoint_activations_,
    compile_,
    plain_copy,
)
from headstart.training.data.packing import PackedBatch
from headstart.training.errors import TrainingError
from headstart.training.language_model import LanguageModel
from headstart.training.optimizers import Muon
from headstart.training.recipe import ModelRecipe, Named
from headstart.training.schedules import WarmupStableDecay
from headstart.training.seams import NextToken
from tests.training import workbench
from tests.training.test_language_model import batch_of
from tests.training.workbench import CONFIG


def network() -> Decoder:
    return build_network(ModelRecipe(config=CONFIG), 1, Path())


def gradients(decoder: Decoder, batch: PackedBatch) -> dict[str, torch.Tensor]:
    decoder.zero_grad()
    loss = LanguageModel(decoder)(batch, NextToken()).total
    loss.backward()
    found = {name.replace("_checkpoint_wrapped_module.", ""): p.grad for name, p in decoder.named_parameters()}
    return {"loss": loss.detach(), **found}  # type: ignore[dict-item]


def test_recomputing_activations_gives_equal_gradients_and_names() -> None:
    plain, recomputing, batch = network(), network(), batch_of((7, 1, 12, 20))
    checkpoint_activations_(recomputing)
    expected, found = gradients(plain, batch), gradients(recomputing, batch)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    copied = plain_copy(recomputing)
    assert list(copied.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), plain.parameters(), strict=True))
    assert copied.embedding.weight is not recomputing.embedding.weight


def test_a_run_that_recomputes_exports_what_one_that_keeps_does(tmp_path: Path) -> None:
    base = workbench.make_corpus(tmp_path)
    kept = workbench.run(base, tmp_path / "kept", workbench.recipe())
    recomputed = workbench.run(base, tmp_path / "recomputed", workbench.recipe(activation_checkpointing=True))
    expected, found = workbench.weights(kept), workbench.weights(recomputed)
    assert list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_exported_run_has_the_same_logits_in_transformers(tmp_path: Path) -> None:
    model = workbench.run(workbench.make_corpus(tmp_path), tmp_path / "run", workbench.recipe())
    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ours = load_checkpoint(str(model), dtype="float32").decoder
    batch = batch_of((40,))
    with torch.no_grad():
        logits = ours.logits(LanguageModel(ours).hidden(batch))
        torch.testing.assert_close(logits, theirs(batch.token_ids[None]).logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    not os.environ.get("HEADSTART_SLOW_TESTS"), reason="compiles for a minute; set HEADSTART_SLOW_TESTS"
)
def test_compiled_blocks_equal_plain_ones() -> None:
    plain, compiled = network(), network()
    compile_(compiled)
    # Other documents of the same total length: nothing is compiled anew for them.
    for lengths in ((7, 1, 12, 20), (40,), (20, 20)):
        batch = batch_of(lengths)
        expected, found = gradients(plain, batch), gradients(compiled, batch)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
    assert list(compiled.state_dict()) == list(plain.state_dict())


def test_optimizers_and_schedules_are_built_by_name() -> None:
    muon = build_named(
        OPTIMIZERS, "optimizer", Named.model_validate({"name": "muon", "lr": "3e-3", "betas": [0.8, 0.9]})
    )
    assert muon == Muon(lr=3e-3, betas=(0.8, 0.9))
    wsd = build_named(SCHEDULES, "schedule", Named.model_validate({"name": "wsd", "shape": "sqrt"}))
    assert wsd == WarmupStableDecay(shape="sqrt")


@pytest.mark.parametrize(
    ("kinds", "given", "match"),
    [
        (OPTIMIZERS, {"name": "adamv"}, "no thing 'adamv'; did you mean 'adamw'.*there are: adamw, muon"),
        (OPTIMIZERS, {"name": "adamw", "weight_decai": 1}, "no argument 'weight_decai'; did you mean 'weight_decay'"),
        (OPTIMIZERS, {"name": "adamw", "zzz": 1}, "no argument 'zzz'; it has: lr, embedding_lr"),
        (OPTIMIZERS, {"name": "adamw", "lr": "fast"}, "thing adamw: lr: Input should be a valid number"),
        (OPTIMIZERS, {"name": "adamw", "betas": 3}, "betas"),
        (SCHEDULES, {"name": "wsd", "shape": "round"}, "thing wsd: shape: Input should be 'linear', 'sqrt'"),
        (SCHEDULES, {"name": "wsd", "decay": 2}, "thing wsd: decay is a share of the steps, from 0 to 1, not 2"),
    ],
)
def test_what_cannot_be_built_is_said(kinds: dict, given: dict, match: str) -> None:
    with pytest.raises(TrainingError, match=match):
        build_named(kinds, "thing", Named.model_validate(given))


def test_training_starts_from_a_checkpoint(tmp_path: Path) -> None:
    base = workbench.make_corpus(tmp_path)
    first = workbench.run(base, tmp_path / "first", workbench.recipe())
    content = workbench.recipe(model={"checkpoint": "first/model"})
    content["phases"][0]["optimizer"]["lr"] = 0.0
    second = workbench.run(base, tmp_path / "second", content)
    expected, found = workbench.weights(first), workbench.weights(second)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(HeadstartError, match="nowhere"):
        build_network(ModelRecipe(checkpoint="nowhere"), 0, base)
