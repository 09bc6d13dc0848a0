"""How weights begin."""

import math

import pytest
import torch

from headstart.models.config import ModelConfig
from headstart.models.decoder import Decoder
from headstart.training.assembly import build_network
from headstart.training.initialise import initialise_
from headstart.training.recipe import ModelRecipe
from tests.models.configs import make_model
from tests.training.workbench import CONFIG

WIDE = CONFIG | {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_hidden_layers": 3}


def drawn(config: dict, seed: int = 0, **options: float) -> Decoder:
    decoder = Decoder(ModelConfig.from_hf(config, "the test's config"))
    initialise_(decoder, torch.Generator().manual_seed(seed), **options)
    return decoder


def test_every_weight_has_the_spread_of_its_kind() -> None:
    decoder = drawn(WIDE | {"tie_word_embeddings": False, "attention_bias": True}, embedding_std=0.05)
    for name, parameter in decoder.named_parameters():
        if parameter.ndim == 1:
            assert set(parameter.tolist()) == {0.0 if name.endswith("bias") else 1.0}
            continue
        expected = 0.05 if name in ("embedding.weight", "lm_head.weight") else 1 / math.sqrt(parameter.shape[1])
        if name.endswith(("attention.output.weight", "mlp.down.weight")):
            expected /= math.sqrt(2 * 3)
        assert parameter.std().item() == pytest.approx(expected, rel=0.03)
        assert abs(parameter.mean().item()) < 4 * expected / math.sqrt(parameter.numel())


def test_experts_are_scaled_by_their_own_inputs() -> None:
    model = make_model("mixtral")
    decoder = drawn(model.config.to_dict() | {"architectures": ["MixtralForCausalLM"]})
    down = decoder.get_parameter("layers.0.mlp.down")
    assert down.std().item() == pytest.approx(1 / math.sqrt(down.shape[-1] * 2 * 3), rel=0.05)


def test_norms_that_add_one_begin_at_zero() -> None:
    model = make_model("gemma2")
    decoder = drawn(model.config.to_dict() | {"architectures": ["Gemma2ForCausalLM"]})
    assert not decoder.norm.weight.any()


def test_the_seed_alone_decides(tmp_path: object) -> None:
    def network(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(torch.randint(100, ()).item())
        return build_network(ModelRecipe(config=CONFIG), seed, tmp_path).state_dict()  # type: ignore[arg-type]

    first, again, other = network(1), network(1), network(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_a_network_to_train_is_float32_in_plain_memory(tmp_path: object) -> None:
    network = build_network(ModelRecipe(config=CONFIG), 0, tmp_path)  # type: ignore[arg-type]
    for parameter in network.parameters():
        assert parameter.dtype == torch.float32 and parameter.is_contiguous() and parameter.requires_grad
