"""The grouped products of a mixture of experts, over every way in which tokens can fall on experts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headstart.ops import kernels
from headstart.ops.kernels import moe as kernel
from headstart.ops.moe import mix_experts, mix_experts_reference
from tests.ops.kernels.devices import DEVICE, random

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")


def inputs(tokens: int, experts: int, inner: int, hidden: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, ...]:
    x = random(tokens, hidden + 3, dtype=dtype, seed=seed)[:, :hidden]
    gate_up = random(experts, 2 * inner, hidden, dtype=dtype, seed=seed + 1, scale=hidden**-0.5)
    return x, gate_up, random(experts, hidden, inner, dtype=dtype, seed=seed + 2, scale=inner**-0.5)


def distinct(tokens: int, experts: int, top_k: int, seed: int) -> Tensor:
    """`[T, K]`, K different experts for each token."""
    scores = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(seed))
    return scores.topk(top_k, -1).indices.to(DEVICE)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 90),
    experts=st.integers(1, 9),
    chosen=st.data(),
)
def test_pairs_by_expert(tokens, experts, chosen):
    """Stable, each pair once, and starts that enclose each expert's, also of those that nobody chose."""
    top_k = chosen.draw(st.integers(1, 8))
    among = chosen.draw(st.lists(st.integers(0, experts - 1), min_size=1))
    drawn = torch.tensor([among[(7 * i) % len(among)] for i in range(tokens * top_k)]).view(tokens, top_k).to(DEVICE)
    order, starts = kernel.sort_pairs(drawn, experts)
    assert torch.equal(order.long(), drawn.flatten().argsort(stable=True))
    counts = drawn.flatten().cpu().bincount(minlength=experts)
    assert starts.tolist() == [0, *counts.cumsum(0).tolist()]
    for height in (1, 16, 64):
        assert sum(-(-int(count) // height) for count in counts) <= kernel.most_tiles(tokens * top_k, experts, height)


def test_more_pairs_than_one_block():
    drawn = distinct(700, 5, 3, 0)
    order, starts = kernel.sort_pairs(drawn, 5)
    assert torch.equal(order.long(), drawn.flatten().argsort(stable=True)) and starts[-1] == 2100


@settings(max_examples=15, deadline=None)
@given(
    tokens=st.sampled_from([1, 2, 7, 40]),
    experts=st.integers(1, 9),
    inner=st.integers(1, 70),
    hidden=st.integers(1, 70),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    activation=st.sampled_from(["silu", "gelu_pytorch_tanh"]),
    onto=st.booleans(),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_equals_the_reference(tokens, experts, inner, hidden, dtype, activation, onto, seed, data):
    """Every size, expert load and top-k, with float32 weights of the mix and with others."""
    chosen = distinct(tokens, experts, data.draw(st.integers(1, min(8, experts))), seed)
    x, gate_up, down = inputs(tokens, experts, inner, hidden, dtype, seed)
    mixing = random(*chosen.shape, dtype=data.draw(st.sampled_from([torch.float32, dtype])), seed=seed + 3).abs()
    base = random(tokens, hidden, dtype=dtype, seed=seed + 4) if onto else None
    got = kernel.mix(x, mixing, chosen, gate_up, down, activation, base)
    wide = [each.double() for each in (x, mixing)], [each.double() for each in (gate_up, down)]
    want = mix_experts_reference(*wide[0], chosen, *wide[1], activation)
    if base is not None:
        want = want + base.double()
    assert got.dtype == dtype
    bound = 2e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(got.double(), want, rtol=bound, atol=bound)


@pytest.mark.parametrize("load", [(40, 0, 0, 0), (0, 0, 0, 40), (1, 38, 0, 1), (17, 16, 15, 0)])
def test_ragged_loads(load):
    """All tokens on one expert, experts without any, and tiles that are full to the last row."""
    chosen = torch.tensor([expert for expert, count in enumerate(load) for _ in range(count)], device=DEVICE)[:, None]
    chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0)).to(DEVICE)]
    x, gate_up, down = inputs(len(chosen), 4, 20, 24, torch.float32, 0)
    mixing = random(len(chosen), 1, seed=5).abs()
    got = kernel.mix(x, mixing, chosen, gate_up, down, "silu", None)
    want = mix_experts_reference(x, mixing, chosen, gate_up, down, "silu")
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 3])
def test_few_tokens_read_the_chosen_experts_only(tokens):
    """What nobody chose is not even multiplied with zero."""
    chosen = torch.tensor([[5, 2]], device=DEVICE).expand(tokens, 2).contiguous()
    x, gate_up, down = inputs(tokens, 8, 20, 24, torch.float32, 0)
    others = [expert for expert in range(8) if expert not in (5, 2)]
    mixing = random(tokens, 2, seed=5).abs()
    want = mix_experts_reference(x, mixing, chosen, gate_up, down, "silu")
    gate_up[others], down[others] = torch.nan, torch.nan
    torch.testing.assert_close(kernel.mix(x, mixing, chosen, gate_up, down, "silu", None), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", {*kernel._GATED.values(), *kernel._PLAIN.values()})
def test_every_tiling(config, monkeypatch):
    monkeypatch.setattr(kernel, "config_for", lambda *args, **kwargs: config)
    chosen = distinct(37, 3, 2, 0)
    x, gate_up, down = inputs(37, 3, 150, 270, torch.float16, 0)
    mixing = random(37, 2, seed=5).abs()
    want = mix_experts_reference(x.double(), mixing.double(), chosen, gate_up.double(), down.double(), "silu")
    got = kernel.mix(x, mixing, chosen, gate_up, down, "silu", None)
    torch.testing.assert_close(got.double(), want, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("onto", [True, False])
def test_the_op_takes_the_kernel(onto, monkeypatch):
    """Where kernels may run, the op runs it; no tokens are no launch."""
    monkeypatch.setattr(kernels, "run_on", lambda *tensors: True)
    x, gate_up, down = inputs(6, 4, 20, 24, torch.float32, 0)
    chosen, mixing = distinct(6, 4, 2, 0), random(6, 2, seed=5).abs()
    base = random(6, 24, seed=6) if onto else None
    taken = []
    run = kernel.mix
    monkeypatch.setattr(kernel, "mix", lambda *args: taken.append(args[0].shape[0]) or run(*args))
    want = mix_experts_reference(x, mixing, chosen, gate_up, down, "silu") + (0 if base is None else base)
    got = mix_experts(x, mixing, chosen, gate_up, down, "silu", base)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert taken == [6]


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_a_graph_replays_other_loads():
    """Captured with one load of the experts, right for any other."""
    x, gate_up, down = inputs(8, 16, 64, 128, torch.bfloat16, 0)
    chosen, mixing = distinct(8, 16, 4, 0), random(8, 4, seed=5).abs()
    kernel.mix(x, mixing, chosen, gate_up, down, "silu", None)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = mix_experts(x, mixing, chosen, gate_up, down, "silu")
    for seed in (1, 2):
        chosen.copy_(distinct(8, 16, 4, seed))
        graph.replay()
        want = mix_experts_reference(x.float(), mixing, chosen, gate_up.float(), down.float(), "silu")
        torch.testing.assert_close(got.float(), want, rtol=3e-2, atol=3e-2)
