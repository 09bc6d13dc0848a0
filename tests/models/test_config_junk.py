"""Configs with fields full of junk: each one is refused in a sentence, or makes a network that computes."""

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from headstart.checkpoints.generation import GenerationConfig
from headstart.checkpoints.random_init import random_checkpoint
from headstart.errors import CheckpointError
from headstart.models.config import ModelConfig
from headstart.models.fields import Fields
from headstart.models.rope import Rope
from tests.models.configs import FAMILIES
from tests.models.naive_attention import NaiveBatch

JUNK = [None, -1, 0, 1, 3, "x", "", [], [[]], [5], {}, {"x": []}, 1e30, -0.5, 10**30, True, False, float("nan")]
# Numbers between these would be honest requests for more memory than there is.
INTEGERS = st.integers(-3, 2000) | st.integers(min_value=2**31) | st.integers(max_value=-(2**31))
ANYTHING = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
Place = tuple[str | int, ...]

pytestmark = pytest.mark.filterwarnings("ignore")


@cache
def valid(name: str) -> dict[str, Any]:
    """The config that Transformers writes for a family; `old:` spells its RoPE as before version 5."""
    fields = deepcopy(FAMILIES[name.removeprefix("old:")])
    model_type = fields.pop("model_type")
    raw = json.loads(AutoConfig.for_model(model_type, **fields).to_json_string(use_diff=False))
    raw["architectures"] = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]]
    if name.startswith("old:"):
        parameters = raw.pop("rope_parameters")
        raw["rope_theta"] = parameters.pop("rope_theta")
        raw["rope_scaling"] = parameters | {"type": parameters.pop("rope_type")}
    return raw


NAMES = [*FAMILIES, "old:llama_yarn", "old:llama_longrope", "old:llama_dynamic", "old:phi3_longrope_partial"]


def places(node: Any, above: Place = ()) -> Iterator[Place]:
    """Where something can be replaced: every value of every dict, and the first of every list."""
    inside = node.items() if isinstance(node, dict) else [(0, node[0])] if isinstance(node, list) and node else []
    for key, value in inside:
        yield (*above, key)
        yield from places(value, (*above, key))


def replaced(raw: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    changed = deepcopy(raw)
    node: Any = changed
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    return changed


def read(raw: dict[str, Any]) -> ModelConfig | None:
    """The config; None when it was refused as it should be."""
    try:
        config = ModelConfig.from_hf(raw)
        GenerationConfig.from_fields(Fields({}, ""), Fields(raw, "config.json"), config.vocab_size)
    except CheckpointError as error:
        assert "config.json" in str(error) and "\n" not in str(error)
        return None
    return config


def logits(raw: dict[str, Any]) -> torch.Tensor:
    """Of a few tokens, by a network with random weights `[T, vocab]`."""
    checkpoint = random_checkpoint(raw | {"initializer_range": 0.02}, "float32")
    ids = torch.arange(6) % checkpoint.config.vocab_size
    with torch.inference_mode():
        return NaiveBatch(checkpoint.decoder, [len(ids)]).step({0: ids})[0]


@pytest.mark.parametrize("name", NAMES)
def test_one_field_of_junk(name: str) -> None:
    raw = valid(name)
    normal = read(raw)
    assert normal is not None and logits(raw).isfinite().all()
    refused, made = 0, []
    for place in places(raw):
        for junk in JUNK:
            changed = replaced(raw, place, junk)
            config = read(changed)
            if config is None:
                refused += 1
            elif replace(config, raw=normal.raw) not in made:
                made.append(replace(config, raw=normal.raw))
                assert logits(changed).isfinite().all(), (place, junk)
    assert refused > 50


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_several_fields_of_anything(data: st.DataObject) -> None:
    raw = valid(data.draw(st.sampled_from(NAMES)))
    for _ in range(data.draw(st.integers(1, 3))):
        raw = replaced(raw, data.draw(st.sampled_from(list(places(raw)))), data.draw(ANYTHING))
    config = read(raw)
    for rope in config.ropes.values() if config is not None else ():
        cos, sin = Rope(rope)(torch.arange(3), torch.full((3,), 3))
        assert cos.shape == sin.shape == (3, rope.dim // 2)
