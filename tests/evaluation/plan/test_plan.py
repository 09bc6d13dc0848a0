"""What `headstart plan` says of models and devices, against allocated caches, counted FLOPs and the paper's example."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from headstart.engine.args import EngineArgs
from headstart.engine.engine import Engine
from headstart.engine.seams import KVLayout, LayerKV
from headstart.errors import CheckpointError
from headstart.evaluation.nonnegative import fit_nonnegative
from headstart.evaluation.plan.costs import ModelCosts, read_config
from headstart.evaluation.plan.devices import DEVICES, Device, PlanError, device_of
from headstart.evaluation.plan.effects import chunked_prefill, effect, effects
from headstart.evaluation.plan.fit import Efficiency, fit
from headstart.methods import registry
from headstart.methods.analysis.long_context_analysis import LongContextAnalysis
from headstart.models.config import ModelConfig
from headstart.models.decoder import AttentionSpec
from tests.conformance import models
from tests.conformance.lab import as_method, make_engine

YI_34B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 7168,
    "intermediate_size": 20480,
    "num_hidden_layers": 60,
    "num_attention_heads": 56,
    "num_key_value_heads": 8,
    "vocab_size": 64000,
    "max_position_embeddings": 200_000,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
PAPER_DEVICE = Device("paper", "A100", 80e9, {"bfloat16": 312e12, "float32": 19.5e12}, 2.039e12, 20e9, "the paper")


def _yi() -> ModelCosts:
    return ModelCosts.of(ModelConfig.from_hf(YI_34B), "yi-34b")


@pytest.mark.parametrize("model", models.EVERY)
def test_bytes_are_those_of_what_is_allocated(model: str) -> None:
    """Weights and cache of every family: what the formula says is what the engine holds."""
    engine = make_engine(model)
    costs = ModelCosts.of(engine.checkpoint.config, model, "float32")
    held = list(engine.checkpoint.decoder.parameters())
    assert costs.parameters == sum(weight.numel() for weight in held)
    assert costs.weight_bytes == sum(weight.numel() * weight.element_size() for weight in held)
    store: Any = engine.store
    assert costs.kv_bytes(store.page_size) == store.bytes_per_page


@pytest.mark.parametrize("model", ["gqa", "mha", "moe"])
@pytest.mark.parametrize("length", [1, 17, 64])
def test_flops_are_those_that_are_counted(model: str, length: int) -> None:
    """Within two per cent of PyTorch's own counter, where every key is multiplied, masked or not."""
    checkpoint = models.shared(model)
    config = checkpoint.config

    def attend(spec: AttentionSpec, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        group = spec.num_heads // spec.num_kv_heads
        k, v = (x.repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
        scores = torch.softmax(q.transpose(0, 1) @ k.transpose(1, 2), -1)
        return (scores @ v).transpose(0, 1)

    # A dense copy of a mixture visits all experts, which no counter of the sparse one could be held to.
    costs = ModelCosts.of(config, model, "float32")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        hidden = checkpoint.decoder(torch.arange(length) % 7 + 3, torch.arange(length), attend)
        checkpoint.decoder.logits(hidden[-1:])
    square = sum(4 * layer.heads * layer.head_dim * length * length for layer in costs.layers)
    expected = costs.linear_flops(length) + square
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)
    # Causal attention needs half of the square, and the diagonal.
    assert costs.attention_flops(length) == pytest.approx(square * (length + 1) / (2 * length))


def test_windows_bound_what_is_read_and_computed() -> None:
    config = models.shared("window").config
    costs = ModelCosts.of(config, "window", "float32")
    slides = [layer for layer in costs.layers if layer.window is not None]
    assert slides and len(slides) < len(costs.layers)
    for n in (1, 5, 8, 9, 50):
        pairs = [sum(min(i + 1, layer.window or n) for i in range(n)) for layer in costs.layers]
        flops = sum(4 * layer.heads * layer.head_dim * p for layer, p in zip(costs.layers, pairs, strict=True))
        assert costs.attention_flops(n) == flops
        assert costs.kv_read_bytes(n) == sum(layer.read * min(n, layer.window or n) for layer in costs.layers)
    assert costs.kv_bytes(50) == 50 * costs.kv_token_bytes, "this engine keeps what a window has passed"


def test_experts_are_read_as_they_are_reached() -> None:
    """One sequence reads its own experts; very many read all of them."""
    costs = ModelCosts.of(models.shared("moe").config, "moe", "float32")
    everything = sum(weight.numel() * 4 for weight in models.shared("moe").decoder.parameters())
    table = costs.head_bytes  # the embedding, of which a step reads a row
    assert costs.decode_weight_bytes(1) < costs.decode_weight_bytes(4) < costs.decode_weight_bytes(10_000)
    assert costs.decode_weight_bytes(10_000) == pytest.approx(everything - table, rel=0.01)


def test_the_papers_example() -> None:
    """Yi-34B on an A100: what is published, from which formula it follows, and what this planner says instead."""
    costs = _yi()
    assert costs.parameters == pytest.approx(34.39e9, rel=1e-3)
    assert costs.kv_token_bytes == 245_760
    assert costs.kv_bytes(50_000) == 12_288_000_000 and costs.kv_bytes(100_000) == 24_576_000_000
    # Published decode of 250 tokens: 8.5 s and 9.8 s, from 34e9 parameters of two bytes and 2.039 TB/s.
    for n, published in ((4_000, 8.46), (50_000, 9.84)):
        assert 250 * (68e9 + costs.kv_bytes(n)) / 2.039e12 == pytest.approx(published, abs=0.01)
    # Published prefill: 0.89 s and 14.1 s. They follow with a hidden size of 6656 and half of the causal term.
    for n, published in ((4_000, 0.89), (50_000, 14.1)):
        assert (2 * 34e9 * n + 60 * 6656 * n * n) / 312e12 == pytest.approx(published, abs=0.01)
    # With the model's own 7168 and the whole causal term it takes longer. So says the planner, without the embedding.
    ours = LongContextAnalysis().at(costs, PAPER_DEVICE, 50_000)
    assert pytest.approx(17.8, abs=0.05) == (2 * 34e9 * 50_000 + 2 * 60 * 7168 * 50_000**2) / 312e12
    assert ours.prefill == pytest.approx(17.8, rel=0.02)
    assert ours.decode * 250 == pytest.approx(9.84, rel=0.01)
    # 80 GB hold the weights and 12 users of 4,000 tokens, not 20, and not one of 50,000. With 80 GiB it is 17 and one.
    rounded = replace(costs, weight_bytes=68_000_000_000)
    users = {
        memory: [
            LongContextAnalysis().at(rounded, replace(PAPER_DEVICE, memory=memory), n).users for n in (4000, 50000)
        ]
        for memory in (80e9, 80 * 2**30)
    }
    assert users == {80e9: [12, 0], 80 * 2**30: [18, 1]}
    # A switch at 50K is 1.23 s over 20 GB/s; the published 1.1 s take 11.4 GiB for GB.
    assert ours.switch == pytest.approx(1.229, abs=0.001)
    assert pytest.approx(1.14, abs=0.01) == 2 * 50_000 * 245_760 / 2**30 / 20


@pytest.mark.parametrize("length", [1_000, 50_000])
def test_quantities_move_the_right_way(length: int) -> None:
    """Better hardware never makes anything worse, and half the cache fits twice the users."""
    costs, base = _yi(), DEVICES["h200"]
    before = LongContextAnalysis(4).at(costs, base, length)
    for better in (
        replace(base, memory=base.memory * 1.5),
        replace(base, bandwidth=base.bandwidth * 1.5),
        replace(base, flops={"bfloat16": 2e15, "float32": 2e15}),
        replace(base, link=(base.link or 0) * 2),
    ):
        after = LongContextAnalysis(4).at(costs, better, length)
        assert after.users >= before.users and after.prefill <= before.prefill
        assert after.decode <= before.decode and (after.switch or 0) <= (before.switch or 0)
    halved = LongContextAnalysis(4).at(replace(costs, kv_token_bytes=costs.kv_token_bytes // 2), base, length)
    assert halved.users in (2 * before.users, 2 * before.users + 1)
    twice = LongContextAnalysis(4).at(costs, base, 2 * length)
    assert twice.kv_bytes == 2 * before.kv_bytes and twice.prefill > 2 * before.prefill


def test_attention_is_half_of_prefill_at_the_crossover() -> None:
    costs = _yi()
    n = round(costs.crossover)
    found = LongContextAnalysis().at(costs, PAPER_DEVICE, n)
    assert found.attention_share == pytest.approx(0.5, abs=0.001)


def test_nonnegative_fit_finds_planted_coefficients() -> None:
    torch.manual_seed(0)
    planted = torch.tensor([1e-3, 0.0, 2e-9, 5e-12], dtype=torch.float64)
    features = torch.rand(40, 4, dtype=torch.float64) * torch.tensor([1.0, 10.0, 1e6, 1e9])
    times = features @ planted
    found = fit_nonnegative(features.tolist(), times.tolist())
    assert found == pytest.approx(planted.tolist(), rel=1e-6, abs=1e-15)
    noisy = fit_nonnegative(features.tolist(), (times * (1 + 0.05 * torch.randn(40))).tolist())
    assert (noisy >= 0).all()


def test_fit_recovers_an_engine_that_obeys_the_formulas() -> None:
    costs = _yi()
    truth = Efficiency(step=2e-3, linear=1 / 150e12, attention=1 / 60e12, decode_step=1e-3, traffic=1 / 1.5e12)
    known = (500, 1000, 3000, 7000)
    prefill = {n: truth.prefill(costs, 512, n) for n in known}
    found = Efficiency.fit(costs, 512, prefill, {n: truth.decode(costs, n) for n in known})
    for n in (800, 5000, 20_000):
        assert found.prefill(costs, 512, n) == pytest.approx(truth.prefill(costs, 512, n), rel=1e-3)
        assert found.decode(costs, n) == pytest.approx(truth.decode(costs, n), rel=1e-3)


def test_fit_runs_the_engine() -> None:
    """Rows for both quantities at each length, from lengths that were not fitted."""
    engine = Engine(
        EngineArgs(device="cpu", page_size=16, num_pages=64, enable_prefix_caching=False, max_num_batched_tokens=16),
        models.shared("gqa"),
    )
    costs = ModelCosts.of(engine.checkpoint.config, "gqa", "float32")
    found = fit(engine, costs, DEVICES["laptop"], [24, 48], rounds=1)
    assert [(row.what, row.length) for row in found.rows] == [
        *(("prefill", 24), ("prefill", 48)),
        *(("decode", 24), ("decode", 48)),
    ]
    assert found.chunk == 16 and all(row.measured > 0 and row.fitted > 0 and row.peak > 0 for row in found.rows)
    assert found.worst == max(abs(row.error) for row in found.rows)
    assert not engine.has_work
    with pytest.raises(PlanError, match=r"a context of 95 tokens .* and the engine serves 96; ask for shorter"):
        fit(engine, costs, DEVICES["laptop"], [95])


class _Halved(KVLayout):
    def layers(self, specs: Any, dtype: torch.dtype) -> list[LayerKV]:
        full = [LayerKV(spec.num_kv_heads, spec.head_dim, dtype) for spec in specs]
        return [full[0], replace(full[0], alias_of=0)]


class _Broken(KVLayout):
    def layers(self, specs: Any, dtype: torch.dtype) -> list[LayerKV]:
        raise AttributeError("asks for the model first")


def test_effects_come_from_formulas_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layout says itself what it keeps, and one that cannot before it has seen the model is not guessed."""
    config = models.shared("gqa").config
    costs = ModelCosts.of(config, "gqa", "float32")
    device = DEVICES["laptop"]
    for layout, expected in ((_Halved, 0.5), (_Broken, None)):
        made = as_method(layout(), "layout")
        monkeypatch.setattr(registry, "build", lambda use, kind=None, made=made: made)
        card: Any = made.card  # type: ignore[attr-defined]
        found = effect(card, config, costs, device, 64, [])
        assert (found.prefill, found.kv, found.decode) == (None, expected, None)
        assert ("formula" in found.source) == (expected is not None)
    monkeypatch.undo()
    for item in effects(config, costs, device, 64, []):
        assert item.source and (item.prefill is None or item.prefill > 0)


def test_chunks_read_weights_again() -> None:
    """Where computing is free, k chunks read the weights k times; where reading is free, nothing is lost."""
    costs = _yi()
    fast = replace(PAPER_DEVICE, flops={"bfloat16": 1e30, "float32": 1e30})
    read = [chunked_prefill(costs, fast, 4096, chunk) for chunk in (None, 2048, 1024)]
    assert read[0] < read[1] < read[2] and read[2] == pytest.approx(4 * read[0], rel=0.05)
    wide = replace(PAPER_DEVICE, bandwidth=1e30)
    assert chunked_prefill(costs, wide, 4096, 512) == pytest.approx(chunked_prefill(costs, wide, 4096), rel=1e-9)


def test_what_cannot_be_planned_is_said(tmp_path: Any) -> None:
    with pytest.raises(PlanError, match="there is no device 'h1000' in the catalogue; did you mean 'h100'"):
        device_of("h1000")
    assert device_of("RTX 4090") is DEVICES["rtx4090"]
    (tmp_path / "odd.json").write_text('{"architectures": ["Mamba"]}')
    with pytest.raises(CheckpointError, match=r"the architecture 'Mamba' .* is not supported"):
        read_config(tmp_path / "odd.json")
    (tmp_path / "junk.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        read_config(tmp_path / "junk.json")


def test_every_device_is_whole() -> None:
    for device in DEVICES.values():
        assert device.source and math.isfinite(device.memory) and device.peak("bfloat16") >= device.peak("float32")
        assert device.peak("float16") == device.peak("bfloat16")
