"""The formula for FLOPs against PyTorch's count of what runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from headstart.models.config import ModelConfig
from headstart.models.decoder import Decoder
from headstart.training.flops import measured_peak, training_flops
from headstart.training.initialise import initialise_
from headstart.training.language_model import LanguageModel
from headstart.training.seams import NextToken
from tests.models.configs import make_model
from tests.training.test_language_model import batch_of
from tests.training.workbench import CONFIG


def decoder(**changes: object) -> Decoder:
    network = Decoder(ModelConfig.from_hf(CONFIG | changes, "the test's config"))
    initialise_(network, torch.Generator().manual_seed(0))
    return network.requires_grad_()


@pytest.mark.parametrize("tied", [True, False])
def test_the_products_of_forward_and_backward(tied: bool) -> None:
    network = decoder(tie_word_embeddings=tied)
    # Documents of one token make attention nothing to speak of: what is left are the products with weights.
    lengths = (1,) * 64
    with FlopCounterMode(display=False) as counter:
        LanguageModel(network)(batch_of(lengths), NextToken()).total.backward()
    counted = counter.get_flop_counts()["Global"]
    products = sum(flops for operation, flops in counted.items() if "mm" in str(operation))
    # The counter sees the product of the output layer's gradient with the inputs of the forward pass too.
    weights = training_flops(network, lengths) - 3 * 4 * network.config.num_heads * 8 * 64 * 2
    assert products == pytest.approx(weights, rel=0.02)


def test_attention_counts_the_pairs_that_are_seen() -> None:
    network = decoder()
    heads, size, layers = network.config.num_heads, network.config.head_dim, network.config.num_layers
    parts = training_flops(network, [50, 30]), training_flops(network, [80])
    pairs = [50 * 51 / 2 + 30 * 31 / 2, 80 * 81 / 2]
    assert parts[1] - parts[0] == pytest.approx(3 * 4 * heads * size * layers * (pairs[1] - pairs[0]))
    windowed = Decoder(
        ModelConfig.from_hf(
            CONFIG | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 10},
            "the test's config",
        )
    )
    seen = sum(min(place + 1, 10) for place in range(80))
    without = training_flops(windowed, [1] * 80) - 3 * 4 * heads * size * layers * 80
    assert training_flops(windowed, [80]) - without == pytest.approx(3 * 4 * heads * size * layers * seen)


def test_only_chosen_experts_count() -> None:
    model = make_model("mixtral")
    network = Decoder(ModelConfig.from_hf(model.config.to_dict() | {"architectures": ["MixtralForCausalLM"]}, "c"))
    config, moe = network.config, network.config.moe
    assert moe is not None
    experts = sum(p.numel() for p in network.parameters() if p.ndim == 3)
    dense = sum(p.numel() for p in network.parameters() if p.ndim == 2) - network.embedding.weight.numel()
    attention = 4 * config.num_heads * config.head_dim * config.num_layers
    expected = 3 * (2 * (dense + experts * moe.top_k / moe.num_experts) + attention)
    assert training_flops(network, [1]) == pytest.approx(expected)


def test_other_networks_count_their_products_alone() -> None:
    model = make_model("llama")
    weights = sum(p.numel() for p in model.parameters() if p.ndim == 2) - model.get_input_embeddings().weight.numel()
    assert training_flops(model, [3, 4]) == 6 * weights * 7


def test_the_peak_is_measured_without_touching_the_random_streams() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert measured_peak(torch.device("cpu"), torch.float32) > 1e8
    assert torch.equal(torch.get_rng_state(), before)
