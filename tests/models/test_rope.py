"""RoPE angles against Transformers, including lengths beyond the original, and what may be shared."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from headstart.errors import CheckpointError
from headstart.models.fields import Fields
from headstart.models.rope import Rope, RopeConfig

HALF = 32
PUBLISHED: dict[str, tuple[int, dict[str, Any]]] = {
    "default": (4096, {"rope_type": "default", "rope_theta": 500_000.0}),
    "linear": (4096, {"rope_type": "linear", "factor": 2.5, "rope_theta": 10_000.0}),
    "dynamic": (512, {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}),
    "llama3": (
        131072,
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_theta": 500_000.0,
        },
    ),
    "yarn": (
        131072,
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
            "rope_theta": 1_000_000.0,
        },
    ),
    "yarn_mscale": (
        4096,
        {
            "rope_type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 1024,
            "mscale": 0.707,
            "mscale_all_dim": 1.0,
            "beta_fast": 24.0,
            "beta_slow": 1.5,
            "truncate": False,
            "rope_theta": 10_000.0,
        },
    ),
    "longrope": (
        4096,
        {
            "rope_type": "longrope",
            "factor": 8.0,
            "original_max_position_embeddings": 512,
            "short_factor": [1.0 + i / 50 for i in range(HALF)],
            "long_factor": [1.0 + i * i / 20 for i in range(HALF)],
            "rope_theta": 10_000.0,
        },
    ),
}


def rope_of(raw: dict[str, Any]) -> RopeConfig:
    fields = Fields(raw, "config.json")
    return RopeConfig.from_fields(
        fields, "full_attention", 2 * HALF, default_theta=10_000.0, local_theta=None, aliases={}
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("length", [17, 700, 3000])
@pytest.mark.parametrize("name", PUBLISHED)
def test_angles_equal_transformers(name: str, length: int) -> None:
    max_position, parameters = PUBLISHED[name]
    config = LlamaConfig(
        hidden_size=4 * HALF,
        num_attention_heads=2,
        max_position_embeddings=max_position,
        rope_parameters=dict(parameters),
    )
    positions = torch.arange(length)
    expected = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    rope = Rope(rope_of({"max_position_embeddings": max_position, "rope_parameters": parameters}))
    got = rope(positions, torch.full((length,), length))
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.shape == (length, HALF) and ours.dtype == torch.float32
        # One float32 rounding of a frequency grows with the position.
        torch.testing.assert_close(ours, theirs[0, :, :HALF], rtol=0, atol=1e-5 + 2e-7 * length)


@pytest.mark.parametrize("name", PUBLISHED)
def test_both_spellings_mean_the_same(name: str) -> None:
    max_position, parameters = PUBLISHED[name]
    old = dict(parameters)
    theta, kind = old.pop("rope_theta"), old.pop("rope_type")
    sizes = {"max_position_embeddings": max_position}
    spelled_old = sizes | {"rope_theta": theta, "rope_scaling": old | {"type": kind} if old else None}
    assert rope_of(spelled_old) == rope_of(sizes | {"rope_parameters": parameters})


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_rows_of_different_lengths_share_a_batch(name: str) -> None:
    max_position, parameters = PUBLISHED[name]
    rope = Rope(rope_of({"max_position_embeddings": max_position, "rope_parameters": parameters}))
    assert rope.length_dependent
    positions, lengths = torch.tensor([3, 3, 900]), torch.tensor([10, 901, 901])
    cos, _ = rope(positions, lengths)
    for row in range(3):
        alone, _ = rope(positions[row, None], lengths[row, None])
        torch.testing.assert_close(cos[row], alone[0])
    assert not torch.equal(cos[0], cos[1])
    with pytest.raises(ValueError, match="length"):
        rope(positions)


def test_reuse_salt_is_equal_exactly_where_angles_are() -> None:
    for name, (max_position, parameters) in PUBLISHED.items():
        rope = Rope(rope_of({"max_position_embeddings": max_position, "rope_parameters": parameters}))
        position = torch.tensor([7])
        by_salt: dict[str, torch.Tensor] = {}
        for length in (8, 511, 512, 513, 600, 700):
            cos, _ = rope(position, torch.tensor([length]))
            salt = rope.reuse_salt(length)
            assert torch.equal(cos, by_salt.setdefault(salt, cos)), name
        assert len({tuple(cos[0].tolist()) for cos in by_salt.values()}) == len(by_salt), name
        if not rope.length_dependent:
            assert set(by_salt) == {""}


def test_bad_input_is_named() -> None:
    sizes = {"max_position_embeddings": 64}
    with pytest.raises(CheckpointError, match=r"RoPE type 'spiral' in config.json .* default, linear"):
        rope_of(sizes | {"rope_scaling": {"rope_type": "spiral"}})
    with pytest.raises(CheckpointError, match=r"rope_scaling.* 'factor'"):
        rope_of(sizes | {"rope_scaling": {"type": "linear"}})
    with pytest.raises(CheckpointError, match=r"short_factor in rope_parameters .* list of 32 numbers"):
        rope_of(sizes | {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}})
    with pytest.raises(CheckpointError, match="even number of rotated dimensions"):
        rope_of(sizes | {"partial_rotary_factor": 0.4})


LONG = {"rope_type": "longrope", "short_factor": [1.0] * HALF, "long_factor": [2.0] * HALF}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (
            LONG | {"original_max_position_embeddings": 1},
            "'longrope' .* needs original_max_position_embeddings above 1",
        ),
        (LONG | {"short_factor": [0.0] * HALF}, "short_factor in .* must be a list of 32 numbers above zero"),
        (LLAMA3, "low_freq_factor in .* must be below high_freq_factor, not 4.0"),
        ({"rope_type": "linear", "factor": 0}, "factor in .* must be a number from .*, not 0"),
        ({"rope_type": "yarn", "factor": 4.0, "rope_theta": 1.0}, "'yarn' in .* needs a rope_theta above 1, not 1.0"),
        ({"rope_type": "yarn", "factor": 4.0, "beta_fast": -1.0}, "beta_fast in .* must be a number from .*, not -1.0"),
        ({"rope_theta": -10_000.0}, "rope_theta in .* must be a number from .*, not -10000.0"),
        ({"partial_rotary_factor": 1.5}, "from 2 to the head's 64, but config.json makes it 96"),
        ({"full_attention": 5}, "full_attention in rope_parameters of config.json must be an object, not 5"),
    ],
)
def test_numbers_that_make_no_angles(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        rope_of({"max_position_embeddings": 64, "rope_parameters": parameters})


def test_dynamic_needs_more_than_one_frequency() -> None:
    with pytest.raises(CheckpointError, match=r"'dynamic' in .* needs more than 2 rotated dimensions"):
        rope_of(
            {
                "max_position_embeddings": 64,
                "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "partial_rotary_factor": 1 / HALF},
            }
        )
