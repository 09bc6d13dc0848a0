"""Two ranks over gloo compute what one does, and each holds and reads its part alone."""

import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]

from headstart.checkpoints.random_init import random_checkpoint
from headstart.checkpoints.reader import load_checkpoint, randomise_weights
from headstart.checkpoints.shard import Shard
from headstart.checkpoints.writer import save_checkpoint
from headstart.errors import HeadstartError
from headstart.models.config import ModelConfig
from headstart.models.decoder import Decoder
from headstart.models.layers import SummedLinear
from headstart.models.parallel import ALONE, WHOLE, Ranks, Share
from tests.models.naive_attention import NaiveCache

_SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}


def _config(architecture: str, **changes: Any) -> dict[str, Any]:
    return _SMALL | {"architectures": [architecture]} | changes


_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
# Grouped heads, one head of keys for both ranks, biases, tied and odd vocabularies, norms over all heads, experts.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _config("LlamaForCausalLM", tie_word_embeddings=False),
    "llama_bias": _config(
        "LlamaForCausalLM", num_key_value_heads=1, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "qwen2": _config("Qwen2ForCausalLM", num_key_value_heads=4, tie_word_embeddings=False),
    "qwen3": _config("Qwen3ForCausalLM", head_dim=16, tie_word_embeddings=True),
    "phi3": _config("Phi3ForCausalLM", tie_word_embeddings=False),
    "gemma2": _config(
        "Gemma2ForCausalLM",
        head_dim=16,
        sliding_window=8,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
    ),
    "olmo2": _config("Olmo2ForCausalLM", num_key_value_heads=1, tie_word_embeddings=False),
    "mixtral": _config("MixtralForCausalLM", num_local_experts=3, num_experts_per_tok=2, sliding_window=None),
    "qwen3_moe": _config("Qwen3MoeForCausalLM", head_dim=16, num_hidden_layers=3, mlp_only_layers=[1], **_EXPERTS),
    "olmoe": _config("OlmoeForCausalLM", clip_qkv=0.8, **_EXPERTS),
}
TOKENS = torch.randint(0, 97, (21,), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def save(name: str, directory: Path) -> None:
    """A checkpoint with every weight random, its norms and biases too."""
    checkpoint = random_checkpoint(CONFIGS[name], "float32", name=name)
    generator = torch.Generator().manual_seed(1)
    for parameter in checkpoint.decoder.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.copy_(noise * parameter.shape[-1] ** -0.5)
        else:
            parameter.add_(0.3 * noise)
    save_checkpoint(checkpoint.decoder, directory)
    if name == "qwen3_moe":
        stack_experts(directory / "model.safetensors")


def stack_experts(path: Path) -> None:
    """The form of newer files: all experts of a layer as one tensor."""
    weights = load_file(path)
    for layer in (0, 2):
        block = f"model.layers.{layer}.mlp.experts"
        parts = {
            part: [weights.pop(f"{block}.{e}.{part}_proj.weight") for e in range(4)] for part in ("gate", "up", "down")
        }
        pairs = zip(parts["gate"], parts["up"], strict=True)
        weights[f"{block}.gate_up_proj"] = torch.stack([torch.cat(pair) for pair in pairs])
        weights[f"{block}.down_proj"] = torch.stack(parts["down"])
    save_file(weights, path)


def read_counting(directory: Path, ranks: Ranks) -> tuple[Decoder, int]:
    """The decoder of a rank, and the bytes that were taken from its file."""
    plain, total = Shard.slices, 0

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal total
        for first, rows in plain(*args, **kwargs):
            total += rows.nbytes
            yield first, rows

    Shard.slices = counting
    try:
        return load_checkpoint(directory, skip_tokenizer_init=True, ranks=ranks).decoder, total
    finally:
        Shard.slices = plain


@torch.inference_mode()
def logits_of(decoder: Decoder) -> torch.Tensor:
    return decoder.logits(decoder(TOKENS, torch.arange(len(TOKENS)), NaiveCache().attend))


def summed_product(ranks: Ranks) -> torch.Tensor:
    """`[1111, 8]` float64, onto a residual stream, each rank with its half of the inputs."""
    generator = torch.Generator().manual_seed(7)
    x, weight, stream = (
        torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((1111, 12), (8, 12), (1111, 8))
    )
    own = slice(ranks.rank * 12 // ranks.size, (ranks.rank + 1) * 12 // ranks.size)
    layer = SummedLinear(12 // ranks.size, 8, False, torch.float64, torch.device("cpu"), ranks)
    layer.weight.copy_(weight[:, own])
    return layer(x[:, own], stream)


def rank_main(rank: int, directory: Path) -> None:
    """One of two ranks: what it finds goes to a file."""
    torch.set_num_threads(1)
    store = FileStore(str(directory / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    ranks, found = Ranks(rank, 2), {}
    for name in CONFIGS:
        decoder, read = read_counting(directory / name, ranks)
        held = sum(parameter.nbytes for parameter in decoder.parameters())
        found[name] = {"read": read, "held": held, "logits": logits_of(decoder)}
    scores = torch.full((3, 4 - rank), float(rank))
    found["gathered"] = ranks.gather(scores, 7)
    found["least"] = ranks.least(rank, 5 - rank, device=torch.device("cpu"))
    found["first"] = ranks.first_(torch.tensor([rank]))
    dummy = Decoder(ModelConfig.from_hf(CONFIGS["olmoe"]), ranks=ranks)
    randomise_weights(dummy)
    found["dummy"] = logits_of(dummy)
    found["chunked"] = [summed_product(replace(ranks, chunks=chunks)) for chunks in (1, 2, 5, 99)]
    torch.save(found, directory / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[Path, list[dict[str, Any]]]:
    """What both ranks found, and the directory with their checkpoints."""
    directory = tmp_path_factory.mktemp("parallel")
    for name in CONFIGS:
        save(name, directory / name)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=rank_main, args=(rank, directory)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    return directory, [torch.load(directory / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_one_rank(found, name):
    """Within the rounding of sums in another order, and the same bits on both ranks."""
    directory, (first, second) = found
    decoder, read = read_counting(directory / name, ALONE)
    whole = logits_of(decoder)
    assert torch.equal(first[name]["logits"], second[name]["logits"])
    torch.testing.assert_close(first[name]["logits"], whole, rtol=1e-4, atol=2e-5)
    for rank in (first, second):
        assert rank[name]["read"] == rank[name]["held"] < read


def test_collectives_cut_and_join(found):
    _, (first, second) = found
    assert first["gathered"].tolist() == [[0.0] * 4 + [1.0] * 3] * 3 == second["gathered"].tolist()
    assert first["least"] == second["least"] == (0, 4)
    assert first["first"].item() == second["first"].item() == 0
    assert torch.equal(first["dummy"], second["dummy"])


def test_a_sum_in_chunks_is_the_sum(found):
    """For one chunk, several with a remainder, and more than there are rows for."""
    _, (first, second) = found
    expected = summed_product(ALONE)
    for product in (*first["chunked"], *second["chunked"]):
        torch.testing.assert_close(product, expected, rtol=1e-13, atol=1e-13)
        assert torch.equal(product, first["chunked"][0])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", [2, 4])
def test_shares_tile_every_parameter(name, size):
    """Together the ranks hold every row and column, twice only what all or several hold."""
    config = ModelConfig.from_hf(CONFIGS[name])
    if name == "mixtral" and size == 4:
        config = replace(config, num_kv_heads=4)
    for parameter, values in Decoder(config).named_parameters():
        shares = [Ranks(rank, size).share(config, parameter) for rank in range(size)]
        if shares[0] is WHOLE:
            continue
        rows = sorted({span for share in shares for span in share.rows or ()})
        columns = sorted({share.columns for share in shares if share.columns is not None})
        for spans, length in (
            (rows, values.shape[-2] if values.dim() > 1 else len(values)),
            (columns, values.shape[-1]),
        ):
            if spans:
                assert [0, *(stop for _, stop in spans)] == [*(start for start, _ in spans), length]


def test_spans_map_a_files_tensor_to_the_ranks_rows():
    share = Share(rows=((2, 4), (10, 13)))
    assert list(share.spans(0, 20)) == [(2, 4, 0), (10, 13, 2)]
    assert list(share.spans(3, 8)) == [(0, 1, 1), (7, 8, 2)]
    assert list(share.spans(4, 6)) == []
    assert list(WHOLE.spans(5, 3)) == [(0, 3, 5)]


@pytest.mark.parametrize(
    ("name", "changes", "size", "said"),
    [
        ("llama", {}, 3, "4 attention heads do not divide among 3 ranks: use a tensor_parallel_size of 1 or 2 or 4"),
        ("llama", {"intermediate_size": 55}, 2, "55 units of its feed-forward blocks"),
        ("llama", {"num_attention_heads": 12, "num_key_value_heads": 3}, 2, "3 heads of keys and values"),
        ("olmoe", {"intermediate_size": 9}, 2, "9 units of its experts"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(name, changes, size, said):
    with pytest.raises(HeadstartError, match=said):
        Decoder(ModelConfig.from_hf(CONFIGS[name] | changes), ranks=Ranks(0, size))
