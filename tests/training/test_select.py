"""Naming parts by pattern, and finding the parts of any model."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from headstart.models.config import ModelConfig
from headstart.models.decoder import Decoder
from headstart.models.layers import Linear
from headstart.training.assembly import checkpoint_activations_
from headstart.training.language_model import LanguageModel
from headstart.training.select import Anatomy, Select, SelectError
from tests.training.workbench import CONFIG


@pytest.fixture
def network() -> Decoder:
    return Decoder(ModelConfig.from_hf(CONFIG, "the test's config"))


def test_patterns_name_parameters_in_their_order_less_what_is_excluded(network: Decoder) -> None:
    found = Select(("layers.*.mlp.*", "norm.weight"), exclude=("layers.0.*",)).parameters(network)
    assert list(found) == ["layers.1.mlp.gate_up.weight", "layers.1.mlp.down.weight", "norm.weight"]
    assert found["norm.weight"] is network.norm.weight


def test_modules_are_named_by_kind(network: Decoder) -> None:
    found = Select(("*.attention.*",)).modules(network, Linear)
    assert list(found) == [f"layers.{i}.attention.{part}" for i in range(2) for part in ("qkv", "output")]


def test_a_pattern_that_names_nothing_suggests_the_nearest(network: Decoder) -> None:
    with pytest.raises(
        SelectError, match=r"'layers.\*.mpl.down.weight' matches nothing.*did you mean 'layers.\*.mlp.down"
    ):
        Select(("layers.*.mpl.down.weight",)).parameters(network)
    with pytest.raises(SelectError, match=r"there are: embedding.weight"):
        Select(("zzz",)).parameters(network)
    with pytest.raises(SelectError, match="zzz"):
        Select(("*",), exclude=("zzz",)).parameters(network)


def test_the_parts_of_a_decoder(network: Decoder) -> None:
    assert Anatomy.of(network) == Anatomy(("embedding",), ("layers.0", "layers.1"), ("norm",), None)
    checkpoint_activations_(network)
    assert Anatomy.of(network).blocks == ("layers.0", "layers.1")
    inside = Anatomy.of(LanguageModel(network))
    assert inside.blocks == ("network.layers.0", "network.layers.1")
    untied = Decoder(ModelConfig.from_hf(CONFIG | {"tie_word_embeddings": False}, "the test's config"))
    assert Anatomy.of(untied).head == "lm_head"


def test_the_parts_of_models_of_transformers() -> None:
    small = {"hidden_size": 16, "num_attention_heads": 2, "vocab_size": 50, "num_hidden_layers": 2}
    llama = AutoModelForCausalLM.from_config(LlamaConfig(intermediate_size=16, **small))
    found = Anatomy.of(llama)
    assert found == Anatomy(("model.embed_tokens",), ("model.layers.0", "model.layers.1"), ("model.norm",), "lm_head")
    gpt2 = AutoModelForCausalLM.from_config(GPT2Config(n_embd=16, n_head=2, n_layer=2, vocab_size=50))
    found = Anatomy.of(gpt2)
    assert found.embeddings == ("transformer.wte", "transformer.wpe")
    assert found.blocks == ("transformer.h.0", "transformer.h.1") and found.head == "lm_head"


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(SelectError, match="no list of equal layers"):
        Anatomy.of(nn.Sequential(nn.Linear(2, 2)))
    mixed = nn.ModuleList([nn.Linear(2, 2), nn.Embedding(2, 2)])
    with pytest.raises(SelectError, match="no list of equal layers"):
        Anatomy.of(nn.ModuleDict({"mixed": mixed}))
    assert torch.is_tensor(mixed[0].weight)
