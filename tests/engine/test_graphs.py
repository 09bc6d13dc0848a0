"""The graphs of small steps, with a recorder that computes again what a GPU would replay."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.engine.batch import TokenBatch
from headstart.engine.graphs import StepGraphs, graph_sizes
from headstart.engine.seams import PagedAttention
from headstart.ops.attention import RaggedLayout, paged_attention_reference

PAGE, HEADS, KV_HEADS, DIM, MAX_SEQS, MAX_PAGES = 4, 4, 2, 8, 12, 8
POOL = 200


def again(compute):
    """Replays by computing again, into the memory of the first result."""
    result = compute()
    return result, lambda: result.copy_(compute())


class Network:
    """One layer of attention whose queries, keys and values are functions of token and position."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(3, 50, KV_HEADS * DIM, generator=generator)
        self.keys, self.values = torch.randn(2, POOL, PAGE, KV_HEADS, DIM, generator=generator)

    def __call__(self, batch: TokenBatch) -> torch.Tensor:
        q, k, v = self.table[:, batch.token_ids] + batch.positions[:, None] / 50
        slots = batch.layout.slots
        wanted = slots >= 0
        for pool, new in ((self.keys, k), (self.values, v)):
            pool.flatten(0, 1)[slots[wanted]] = new[wanted].view(-1, KV_HEADS, DIM)
        q = q.view(-1, KV_HEADS, 1, DIM).expand(-1, -1, HEADS // KV_HEADS, -1).reshape(-1, HEADS, DIM)
        out = torch.zeros_like(q)
        layout, rows = _on_host(batch.layout)
        if len(rows):
            out[rows] = paged_attention_reference(q[rows], self.keys, self.values, layout, scale=0.3)[0]
        return out.flatten(1)[batch.logit_rows]


def _on_host(layout: RaggedLayout) -> tuple[RaggedLayout, torch.Tensor]:
    """The sequences that see something, as the kernel finds them in the index, and their rows."""
    starts, lengths, tables = (part.tolist() for part in layout.index[:3])
    seen = [s for s, length in enumerate(lengths) if length and starts[s + 1] > starts[s]]
    rows = torch.tensor([row for s in seen for row in range(starts[s], starts[s + 1])], dtype=torch.int64)
    queries, keys = [starts[s + 1] - starts[s] for s in seen], [lengths[s] for s in seen]
    return RaggedLayout(queries, keys, [tables[s] for s in seen], PAGE), rows


def step(shapes: list[tuple[int, int]], seed: int, wanted: str) -> TokenBatch:
    """New rows and cached keys of each sequence → a step over pages in random order."""
    generator = torch.Generator().manual_seed(seed)
    pages = torch.randperm(POOL, generator=generator).tolist()
    tables = [[pages.pop() for _ in range(-(-(new + old) // PAGE))] for new, old in shapes]
    layout = RaggedLayout([new for new, _ in shapes], [new + old for new, old in shapes], tables, PAGE)
    positions = torch.cat([torch.arange(old, old + new) for new, old in shapes])
    tokens = torch.randint(0, 50, (len(positions),), generator=generator)
    rows = torch.arange(len(positions)) if wanted == "all" else torch.tensor(layout.query_starts[1:]) - 1
    return TokenBatch(tokens, positions, positions + 1, layout, rows, [])


def graphs_of(network: Network, mixed: bool = True) -> StepGraphs:
    graphs = StepGraphs(network, MAX_SEQS, MAX_PAGES, PAGE, torch.device("cpu"), mixed, again)
    graphs.kinds = [kind for kind in graphs.kinds if kind[0] <= 32]
    return graphs


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(1, 7), st.integers(0, 20)), min_size=1, max_size=4),
            st.sampled_from(["all", "last"]),
        ),
        min_size=1,
        max_size=3,
    ),
    seed=st.integers(0, 2**31),
)
def test_mixed_steps_equal_the_steps_themselves(steps, seed):
    """One after the other, since what a step leaves in the buffers must not show in the next."""
    network, plain = Network(seed), Network(seed)
    graphs = graphs_of(network)
    graphs.capture()
    for number, (shapes, wanted) in enumerate(steps):
        batch = step(shapes, seed + number, wanted)
        assert graphs.fits(batch)
        torch.testing.assert_close(graphs.run(batch), plain(batch), atol=2e-5, rtol=2e-5)
        # Rows that are left over write nothing.
        assert torch.equal(network.keys, plain.keys)


def test_what_fits():
    graphs = graphs_of(Network(0))
    decode = step([(1, 3)] * 3, 0, "all")
    assert graphs.fits(decode)
    assert graphs.fits(step([(16, 0), (1, 9)], 0, "last"))
    assert not graphs.fits(step([(30, 0), (3, 0)], 0, "last")), "more rows than the largest graph"
    assert not graphs.fits(step([(1, 3)] * MAX_SEQS + [(2, 0)], 0, "last")), "more sequences than may run"


def test_sizes_waste_little():
    for most in (1, 3, 8, 100, 256):
        sizes = graph_sizes(most)
        assert sizes == sorted(set(sizes)) and sizes[-1] == most
        assert all(high <= max(8, 1.25 * low) + 8 for low, high in pairwise(sizes))


class TwoForms(PagedAttention):
    """Steps of an even number of sequences in one form, the others in another; notes what it is told."""

    forms = 2

    def __init__(self):
        self.held, self.filled = [], []

    def hold(self, layout, form):
        self.held.append((layout, form))

    def form_of(self, layout):
        return len(layout.query_lengths) % 2

    def refill(self, captured, layout):
        self.filled.append((captured, layout))


def test_forms_of_the_attention():
    """Each size is captured in each form, the largest first; a step replays its own once the buffers are filled."""
    attention, network = TwoForms(), Network(0)
    graphs = StepGraphs(network, MAX_SEQS, MAX_PAGES, PAGE, torch.device("cpu"), True, again, attention)
    graphs.kinds = [kind for kind in graphs.kinds if kind[0] <= 32]
    graphs.capture()
    sizes = [layout.num_rows for layout, _ in attention.held]
    assert sizes == sorted(sizes, reverse=True)
    assert [form for _, form in attention.held] == [0, 1] * (len(sizes) // 2)
    for count in (2, 3, 4):
        batch = step([(1, 3)] * count, count, "all")
        torch.testing.assert_close(graphs.run(batch), Network(0)(batch), atol=2e-5, rtol=2e-5)
        captured, layout = attention.filled[-1]
        assert layout is batch.layout and captured.num_rows >= count
        assert (captured, count % 2) in [(held, form) for held, form in attention.held]
