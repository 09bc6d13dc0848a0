"""Which launches a step's attention takes on a GPU, and that what its layers share is worked out once."""

import pytest
import torch
import torch.nn.functional as F

from headstart.ops.attention import RaggedLayout, paged_attention_reference

pytest.importorskip("triton")

from headstart.ops.attention import cuda, launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLAIN = {"window": None, "softcap": None, "blocks": None, "tree": None}


class Counted:
    """A kernel that counts its launches."""

    def __init__(self, kernel):
        self.kernel, self.count = kernel, 0

    def __getitem__(self, grid):
        self.count += 1
        return self.kernel[grid]


def sdpa(q, k, v, scale, causal):
    """A `Dense` for any device."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = (q.float() @ k.float().mT * scale)[0]
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale), scores.logsumexp(-1)


@pytest.fixture
def counted(monkeypatch):
    """Counts the kernel's launches; the library's is one for any device."""
    kernel = Counted(launch.attention_kernel)
    monkeypatch.setattr(launch, "attention_kernel", kernel)
    monkeypatch.setitem(cuda.DENSE, "cudnn", sdpa)
    # So that chunks small enough for the interpreter have lengths that the library is prepared for.
    monkeypatch.setattr(cuda, "_GRID", 8)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return kernel


def step(lengths, page_size=16, seed=0):
    """Random float16 tensors for sequences of (query rows, keys before them), two layers of them."""
    generator = torch.Generator().manual_seed(seed)
    totals = [queries + before for queries, before in lengths]
    counts = [-(-total // page_size) for total in totals]
    tables = [part.tolist() for part in torch.arange(sum(counts)).split(counts)]
    layout = RaggedLayout([queries for queries, _ in lengths], totals, tables, page_size, DEVICE)
    pools = torch.randn(2, 2, sum(counts), page_size, 1, 16, generator=generator)
    q = torch.randn(2, layout.num_rows, 2, 16, generator=generator)
    return q.to(DEVICE, torch.half), pools.to(DEVICE, torch.half), layout


@pytest.mark.parametrize(
    ("lengths", "path", "launches"),
    [
        ([(1024, 0)], "cudnn", 0),
        ([(1024, 40)], "cudnn", 0),
        ([(1024, 0), (1032, 16)], "cudnn", 0),
        ([(1024, 41)], "cudnn", 1),
        ([(1024, 0), (1, 50), (3, 9)], "cudnn", 1),
        ([(1, 50), (3, 9)], None, 1),
        ([(30, 50)], None, 1),
        ([(30, 50), (2, 7)], None, 2),
    ],
)
def test_no_launch_for_nothing(counted, lengths, path, launches):
    """A class of sequences that a step lacks costs no launch, and each layer's result is right."""
    q, pools, layout = step(lengths)
    for layer in range(2):
        counted.count = 0
        k, v = pools[layer]
        out, lse = cuda.attend_over_pages(q[layer], k, v, layout, **PLAIN, scale=0.3, path=path)
        want, want_lse = paged_attention_reference(q[layer], k, v, layout, scale=0.3)
        torch.testing.assert_close(out, want, atol=2e-2, rtol=2e-2)
        torch.testing.assert_close(lse, want_lse, atol=2e-2, rtol=2e-2)
        assert counted.count == launches
    assert len(layout.routes) == 1


def test_layers_that_differ_have_routes_of_their_own(counted):
    """A layer with a window shares nothing with one without, within one step."""
    q, pools, layout = step([(20, 30), (1, 60)])
    k, v = pools[0]
    for window in (None, 7, None, 7):
        rule = PLAIN | {"scale": 0.3, "window": window}
        out, _ = cuda.attend_over_pages(q[0], k, v, layout, **rule, path=None)
        want, _ = paged_attention_reference(q[0], k, v, layout, scale=0.3, window=window)
        torch.testing.assert_close(out, want, atol=2e-2, rtol=2e-2)
    assert len(layout.routes) == 2
