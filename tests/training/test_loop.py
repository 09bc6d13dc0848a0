"""What a step computes: the mean over its tokens however it is cut up, and what callbacks see on the way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from headstart.training.data.packing import PackedBatch
from headstart.training.distributed import ONE_PROCESS
from headstart.training.documents import Document
from headstart.training.errors import TrainingError
from headstart.training.language_model import LanguageModel
from headstart.training.loop import Interrupted, Trainer
from headstart.training.metrics import read_metrics
from headstart.training.recipe import recipe_of
from headstart.training.run import Run, RunOptions
from headstart.training.seams import Callback, DataStage, DocumentContext, Loss, NextToken, Transform
from tests.training import workbench
from tests.training.workbench import FIRST, LENGTH, phase, recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workbench.make_corpus(tmp_path_factory.mktemp("corpus"))


def run_of(base: Path, out: Path, content: dict[str, Any], *methods: Any) -> Run:
    """A run with further methods in every phase."""
    out.mkdir(parents=True, exist_ok=True)
    run = Run(recipe_of(content, "r"), RunOptions(out, base, "cpu", console=Console(quiet=True)), ONE_PROCESS)
    for stack in run.stacks:
        stack.methods.extend(methods)
    return run


class Keeper(Callback):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.batches: list[PackedBatch] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.events: list[str] = []

    def on_start(self, trainer: Trainer) -> None:
        self.events.append(f"start {trainer.phase.name} {trainer.step}")

    def on_batch(self, trainer: Trainer, batch: PackedBatch) -> None:
        self.batches.append(batch)
        self.events.append("batch")

    def on_gradients(self, trainer: Trainer) -> None:
        found = trainer.model.network.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in found if p.grad is not None})
        self.events.append("gradients")

    def on_step(self, trainer: Trainer) -> None:
        self.events.append(f"step {trainer.step} {trainer.phase_step} {trainer.tokens}")

    def on_eval(self, trainer: Trainer, results: dict[str, float]) -> None:
        self.events.append("eval")
        results["added"] = 7.0

    def on_end(self, trainer: Trainer) -> None:
        self.events.append("end")

    def state_dict(self) -> dict[str, Any]:
        return {"events": list(self.events)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.events = ["resumed", *state["events"]]


def test_one_micro_batch_equals_four(base: Path, tmp_path: Path) -> None:
    found: dict[int, Keeper] = {}
    for rows in (4, 2, 1):
        keeper = found[rows] = Keeper()
        content = recipe(phase(micro_batch_tokens=rows * LENGTH, steps=3, **FIRST))
        run_of(base, tmp_path / str(rows), content, keeper).execute()
        assert len(keeper.batches) == 3 * 4 // rows
    # The rows of a step have different numbers of trained tokens, so a mean of means would be another number.
    assert len({batch.trained_tokens for batch in found[1].batches[:4]}) > 1
    for rows in (2, 1):
        for ours, theirs in zip(found[rows].gradients, found[4].gradients, strict=True):
            for name in theirs:
                torch.testing.assert_close(ours[name], theirs[name], rtol=2e-4, atol=1e-6)
        ours, theirs = (workbench.losses(tmp_path / str(count)) for count in (rows, 4))
        assert ours == pytest.approx(theirs, rel=1e-6)


def test_the_largest_micro_batch_that_divides_is_taken(base: Path, tmp_path: Path) -> None:
    keeper = Keeper()
    content = recipe(phase(micro_batch_tokens=3 * LENGTH, steps=1, tokens=4 * LENGTH, **FIRST))
    run_of(base, tmp_path, content, keeper).execute()
    assert [len(batch.token_ids) for batch in keeper.batches] == [2 * LENGTH] * 2


def test_gradients_are_those_of_the_mean_over_the_trained_tokens(base: Path, tmp_path: Path) -> None:
    keeper = Keeper()
    run = run_of(base, tmp_path, recipe(phase(steps=1, micro_batch_tokens=LENGTH, **FIRST), clip=None), keeper)
    before = {name: p.detach().clone() for name, p in run.network.named_parameters()}
    run.execute()
    with torch.no_grad():
        for name, parameter in run.network.named_parameters():
            parameter.copy_(before[name])
            parameter.grad = None
    model, total, tokens = LanguageModel(run.network), torch.zeros(()), 0
    for batch in keeper.batches:
        loss = NextToken().loss(model, batch)
        total, tokens = total + loss.total, tokens + batch.trained_tokens
    (total / tokens).backward()
    for name, parameter in run.network.named_parameters():
        torch.testing.assert_close(keeper.gradients[0][name], parameter.grad, rtol=1e-4, atol=1e-7)
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert line["loss"] == pytest.approx((total / tokens).item(), rel=1e-6)
    assert line["trained_tokens"] == tokens and line["tokens"] == 4 * LENGTH
    norm = torch.cat([gradient.flatten() for gradient in keeper.gradients[0].values()]).norm()
    assert line["gradient_norm"] == pytest.approx(norm.item(), rel=1e-5)


@pytest.mark.parametrize("clip", [0.01, 1e6])
def test_clipping(base: Path, tmp_path: Path, clip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper, norms, real = Keeper(), [], torch.optim.AdamW.step

    def step(optimizer: torch.optim.AdamW, closure: Any = None) -> Any:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())
        return real(optimizer, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    run_of(base, tmp_path, recipe(phase(steps=1, **FIRST), clip=clip), keeper).execute()
    before = torch.cat([gradient.flatten() for gradient in keeper.gradients[0].values()]).norm().item()
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["gradient_norm"] == pytest.approx(before, rel=1e-5)
    assert norms[0] == pytest.approx(min(before, clip), rel=1e-3)


def test_rates_follow_the_schedule_and_the_group(base: Path, tmp_path: Path) -> None:
    seen = []

    class Rates(Callback):
        def on_gradients(self, trainer: Trainer) -> None:
            seen.append([group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups])

    first = {
        "optimizer": {"name": "adamw", "lr": 0.1, "embedding_lr": 0.3},
        "schedule": {"name": "wsd", "warmup": 0.25, "decay": 0.5},
    }
    new = {"schedule": {"name": "constant", "level": 0.5}}
    content = recipe(phase("one", 4, **first), phase("two", 4), phase("three", 2, **new), log_every=1)
    run_of(base, tmp_path, content, Rates()).execute()
    # One schedule over the first two phases; the third begins its own from the same peaks.
    factors = [0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0.5, 0.5]
    expected = [[0.3 * factor, 0.1 * factor, 0.1 * factor] for factor in factors]
    assert [pytest.approx(rates) for rates in seen] == expected
    logged = [line["learning_rate"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert logged == [rates[0] for rates in seen]


def test_callbacks_hear_everything_in_order(base: Path, tmp_path: Path) -> None:
    keeper = Keeper()
    evaluated = {"sources": {"held-out": "held-out"}, "every": 2}
    content = recipe(phase("one", 3, micro_batch_tokens=64, eval=evaluated, **FIRST), phase("two", 1))
    run_of(base, tmp_path, content, keeper).execute()
    step = ["batch", "batch", "gradients"]
    assert keeper.events == [
        "start one 0",
        *[*step, "step 1 1 128"],
        *[*step, "step 2 2 256", "eval"],
        *[*step, "step 3 3 384", "end", "eval"],
        "start two 3",
        *["batch", "gradients", "step 4 1 512", "end"],
    ]
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "evaluation" in line]
    assert [(line["step"], line["added"]) for line in lines] == [(2, 7.0), (3, 7.0)]


def test_what_callbacks_and_objectives_keep_is_resumed(base: Path, tmp_path: Path) -> None:
    class Counting(NextToken):
        seen = 0

        def loss(self, model: LanguageModel, batch: PackedBatch) -> Loss:
            self.seen += 1
            plain = super().loss(model, batch)
            return Loss(plain.total, plain.tokens, {"seen": plain.tokens * self.seen})

        def state_dict(self) -> dict[str, Any]:
            return {"seen": torch.tensor(self.seen)}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.seen = int(state["seen"])

    class Stop(Callback):
        def on_step(self, trainer: Trainer) -> None:
            trainer.stop_requested = trainer.step == 2

    content = recipe(phase(steps=4, **FIRST))
    with pytest.raises(Interrupted):
        run_of(base, tmp_path, content, Counting(), Keeper(), Stop()).execute()
    keeper = Keeper()
    run_of(base, tmp_path, content, Counting(), keeper, Stop()).execute()
    # Metrics are summed over tokens and divided by them.
    assert [line["seen"] for line in read_metrics(tmp_path / "metrics.jsonl")] == pytest.approx([1, 2, 3, 4])
    assert keeper.events[0] == "resumed" and keeper.events.count("start main 2") == 1


def test_the_state_of_every_kind_of_method_is_resumed_once_and_that_of_stages_as_far_as_was_read(
    base: Path, tmp_path: Path
) -> None:
    class Kept(Transform):
        value = 0.0

        def apply_(self, model: nn.Module) -> None: ...

        def fold(self, model: nn.Module) -> None: ...

        def state_dict(self) -> dict[str, Any]:
            return {"value": self.value}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.value = state["value"]

    class Counted(DataStage, Callback):
        """Fills two slots with one state, which data made ahead of the steps has moved on."""

        def __init__(self) -> None:
            self.seen, self.loaded = 0, 0

        def __call__(self, document: Document, context: DocumentContext) -> list[Document]:
            self.seen += 1
            assert self.seen == context.ordinal + 1
            return [document]

        def on_step(self, trainer: Trainer) -> None:
            kept.value += 1
            trainer.stop_requested = trainer.step == 2

        def state_dict(self) -> dict[str, Any]:
            return {"seen": self.seen}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.seen = state["seen"]
            self.loaded += 1

    content = recipe(phase(steps=4, **FIRST))
    kept, counted = Kept(), Counted()
    with pytest.raises(Interrupted):
        run_of(base, tmp_path, content, kept, counted).execute()
    kept, counted = Kept(), Counted()
    run_of(base, tmp_path, content, kept, counted).execute()
    assert kept.value == 4 and counted.loaded == 1


def test_a_callback_may_replace_gradients(base: Path, tmp_path: Path) -> None:
    class Zero(Callback):
        def on_gradients(self, trainer: Trainer) -> None:
            for parameter in trainer.model.parameters():
                parameter.grad = torch.zeros_like(parameter)

    content = recipe(phase(steps=1, optimizer={"name": "adamw", "weight_decay": 0}, schedule={"name": "constant"}))
    run = run_of(base, tmp_path, content, Zero())
    before = {name: p.detach().clone() for name, p in run.network.named_parameters()}
    run.execute()
    assert all(torch.equal(p, before[name]) for name, p in run.network.named_parameters())
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["gradient_norm"] == 0


@contextmanager
def planted(change: Callable[[Trainer], None], at: int) -> Iterator[None]:
    """Change something right before a step."""
    real = Trainer._train_step

    def stepping(self: Trainer) -> None:
        if self.step == at:
            with torch.no_grad():
                change(self)
        real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stepping)
        yield


@pytest.mark.parametrize("checkpoints", [True, False])
def test_a_loss_that_is_no_number_stops_before_the_weights_move(base: Path, tmp_path: Path, checkpoints: bool) -> None:
    content = recipe(phase(steps=6, **FIRST), checkpoint_every=2 if checkpoints else 100)
    run = run_of(base, tmp_path, content)

    def infinite(trainer: Trainer) -> None:
        trainer.model.network.get_parameter("layers.0.mlp.down.weight").fill_(float("inf"))

    good = "the last good checkpoint is that of step 2" if checkpoints else "there is no checkpoint yet"
    match = rf"the loss is nan and the gradient's norm nan at step 4, whose batch holds .*prose:d\d+.*; {good}"
    with planted(infinite, at=3), pytest.raises(TrainingError, match=match) as raised:
        run.execute()
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3
    untouched = run.network.get_parameter("layers.0.mlp.gate_up.weight")
    assert torch.isfinite(untouched).all()


def test_an_infinite_gradient_stops_too(base: Path, tmp_path: Path) -> None:
    class Infinite(Callback):
        def on_gradients(self, trainer: Trainer) -> None:
            trainer.model.network.get_parameter("norm.weight").grad[0] = float("inf")  # type: ignore[index]

    run = run_of(base, tmp_path, recipe(), Infinite())
    before = {name: p.detach().clone() for name, p in run.network.named_parameters()}
    with pytest.raises(TrainingError, match=r"the loss is \d\.\d+ and the gradient's norm inf at step 1"):
        run.execute()
    assert all(torch.equal(p, before[name]) for name, p in run.network.named_parameters())


def test_a_step_without_a_trained_token_is_said(base: Path, tmp_path: Path) -> None:
    class Untrained(NextToken):
        def loss(self, model: LanguageModel, batch: PackedBatch) -> Loss:
            batch.targets.fill_(-100)
            return super().loss(model, batch)

    with pytest.raises(TrainingError, match="no token of step 1 is trained"):
        run_of(base, tmp_path, recipe(), Untrained()).execute()


def test_dropout_draws_from_a_stream_of_its_own(base: Path, tmp_path: Path) -> None:
    drawn = []

    class Draws(Callback):
        def on_step(self, trainer: Trainer) -> None:
            drawn.append(torch.rand(()).item())

    for out in "ab":
        torch.manual_seed(torch.randint(1000, ()).item())
        run_of(base, tmp_path / out, recipe(phase(steps=2, **FIRST)), Draws()).execute()
    run_of(base, tmp_path / "c", recipe(phase(steps=2, **FIRST), seed=4), Draws()).execute()
    assert drawn[:2] == drawn[2:4] and drawn[4:] != drawn[:2]
