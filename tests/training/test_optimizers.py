"""What each optimizer does to each weight, against the published updates written out."""

import pytest
import torch
from torch import Tensor, nn

from headstart.models.config import ModelConfig
from headstart.models.decoder import Decoder
from headstart.training.errors import TrainingError
from headstart.training.initialise import initialise_
from headstart.training.optimizers import AdamW, Muon, parameter_groups
from tests.models.configs import make_model
from tests.training.workbench import CONFIG


def decoder(config: dict) -> Decoder:
    network = Decoder(ModelConfig.from_hf(config, "the test's config"))
    initialise_(network, torch.Generator().manual_seed(0))
    return network.requires_grad_()


def with_gradients(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """Random gradients on every trained weight, by name."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        # In the weight's memory order, as autograd has it.
        parameter.grad = torch.empty_like(parameter).normal_(generator=generator) if parameter.requires_grad else None
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def rates(optimizers: list[torch.optim.Optimizer], network: nn.Module) -> dict[str, tuple[float, float]]:
    """Learning rate and decay of every weight that some optimizer holds."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    held = [names[p] for group in groups for p in group["params"]]
    assert len(set(held)) == len(held)
    return {names[p]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def of_family(name: str) -> Decoder:
    model = make_model(name)
    return decoder(model.config.to_dict() | {"architectures": [type(model).__name__]})


@pytest.mark.parametrize("name", ["llama", "llama_tied_bias", "qwen3", "mixtral", "qwen3_moe", "olmoe"])
@pytest.mark.parametrize("factory", [AdamW(), Muon()])
def test_every_trained_weight_is_in_one_group(name: str, factory: AdamW | Muon) -> None:
    network = of_family(name)
    frozen = "layers.0.attention.output.weight"
    network.get_parameter(frozen).requires_grad_(False)
    trained = {parameter for parameter, p in network.named_parameters() if p.requires_grad}
    assert set(rates(factory.build(network), network)) == trained and frozen not in trained
    groups = parameter_groups(network)
    embeddings = 1 if network.config.tie_embeddings else 2
    assert len(groups["embeddings"]) == embeddings
    assert all(p.ndim == 1 for p in groups["vectors"]) and all(p.ndim > 1 for p in groups["matrices"])


def test_each_kind_of_weight_has_its_rate_and_only_matrices_decay() -> None:
    network = decoder(CONFIG | {"tie_word_embeddings": False})
    for factory in (AdamW, Muon):
        found = rates(factory(1e-3, 2e-3, 0.0, weight_decay=0.3).build(network), network)
        for name, (rate, decay) in found.items():
            if name in ("embedding.weight", "lm_head.weight"):
                assert (rate, decay) == (2e-3, 0.0)
            elif "norm" in name:
                assert (rate, decay) == (0.0, 0.0)
            else:
                assert (rate, decay) == (1e-3, 0.3)
        assert set(rates(factory(5e-3).build(network), network).values()) == {(5e-3, 0.1), (5e-3, 0.0)}


def test_adamw_is_the_published_update() -> None:
    network = decoder(CONFIG)
    settings = AdamW(lr=0.01, embedding_lr=0.02, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.5)
    (optimizer,) = settings.build(network)
    expected = {name: p.detach().double() for name, p in network.named_parameters()}
    first = {name: torch.zeros_like(p) for name, p in expected.items()}
    second = {name: torch.zeros_like(p) for name, p in expected.items()}
    for step in range(1, 4):
        for name, gradient in with_gradients(network, step).items():
            rate = 0.02 if name == "embedding.weight" else 0.01
            decay = 0.5 if expected[name].ndim == 2 and name != "embedding.weight" else 0.0
            first[name] = 0.8 * first[name] + 0.2 * gradient.double()
            second[name] = 0.9 * second[name] + 0.1 * gradient.double() ** 2
            unbiased = first[name] / (1 - 0.8**step), second[name] / (1 - 0.9**step)
            expected[name] = expected[name] * (1 - rate * decay) - rate * unbiased[0] / (unbiased[1].sqrt() + 1e-3)
        optimizer.step()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), expected[name], rtol=1e-5, atol=1e-6)


def newton_schulz(matrix: Tensor) -> Tensor:
    """Five steps of the published quintic iteration, in float64."""
    x = matrix / matrix.norm()
    for _ in range(5):
        gram = x @ x.t()
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def test_muon_is_the_published_update() -> None:
    network = decoder(CONFIG)
    optimizers = Muon(lr=0.02, momentum=0.9, weight_decay=0.5).build(network)
    matrices = {name: p for name, p in network.named_parameters() if p.ndim == 2 and name.startswith("layers.")}
    expected = {name: p.detach().double() for name, p in matrices.items()}
    momentum = {name: torch.zeros_like(p) for name, p in expected.items()}
    for step in range(3):
        gradients = with_gradients(network, step)
        for name in matrices:
            gradient = gradients[name].double()
            # Nesterov; the scale of the momentum does not matter, since the iteration normalises.
            momentum[name] = 0.9 * momentum[name] + 0.1 * gradient
            update = newton_schulz(0.1 * gradient + 0.9 * momentum[name])
            scale = 0.2 * max(update.shape) ** 0.5
            expected[name] = expected[name] * (1 - 0.02 * 0.5) - 0.02 * scale * update
        for optimizer in optimizers:
            optimizer.step()
    for name, parameter in matrices.items():
        # PyTorch iterates in bfloat16.
        assert (parameter.detach().double() - expected[name]).norm() < 0.02 * expected[name].norm()


def test_matrices_moved_together_move_as_one_by_one() -> None:
    ours, theirs = decoder(CONFIG), decoder(CONFIG)
    muon = Muon(lr=0.02).build(ours)[0]
    by_name = dict(theirs.named_parameters())
    moved = {name: p for name, p in ours.named_parameters() if any(p is q for q in muon.param_groups[0]["params"])}
    peer = torch.optim.Muon([by_name[name] for name in moved], lr=0.02, adjust_lr_fn="match_rms_adamw")
    missing = next(iter(moved))
    momentum = "momentum_buffer"
    for step in range(3):
        with_gradients(ours, step)
        with_gradients(theirs, step)
        moved[missing].grad = by_name[missing].grad = None
        muon.step()
        peer.step()
    for name, parameter in moved.items():
        # Both iterate in bfloat16, in products of another order.
        assert (parameter - by_name[name]).norm() < 0.01 * parameter.norm(), name
        assert name == missing or torch.equal(muon.state[parameter][momentum], peer.state[by_name[name]][momentum])


def test_orthogonal_updates_have_singular_values_near_one() -> None:
    singular = torch.linalg.svdvals(
        newton_schulz(torch.randn(48, 32, generator=torch.Generator().manual_seed(0)).double())
    )
    assert singular.min() > 0.3 and singular.max() < 1.3


def test_experts_are_moved_by_adamw_and_decay() -> None:
    network = of_family("mixtral")
    muon, adamw = Muon(lr=1e-3, weight_decay=0.3).build(network)
    stacked = [p for p in network.parameters() if p.ndim == 3]
    assert stacked
    (group,) = [g for g in adamw.param_groups if any(p is stacked[0] for p in g["params"])]
    assert (group["lr"], group["weight_decay"]) == (1e-3, 0.3)
    assert all(p.ndim == 2 for g in muon.param_groups for p in g["params"])


def test_only_some_kinds_may_be_trained() -> None:
    network = decoder(CONFIG).requires_grad_(False)
    network.embedding.weight.requires_grad_()
    assert [type(o).__name__ for o in Muon().build(network)] == ["AdamW"]
    network.requires_grad_(False)
    for factory in (AdamW(), Muon()):
        with pytest.raises(TrainingError, match="no weight of the model is trained"):
            factory.build(network)
