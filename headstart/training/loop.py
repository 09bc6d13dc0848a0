"""The training loop, from top to bottom: a phase's steps, what happens between them, how a run stops and resumes."""

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from headstart.training.checkpoint_store import CheckpointStore
from headstart.training.data.packing import PackedBatch
from headstart.training.distributed import World
from headstart.training.errors import TrainingError
from headstart.training.flops import training_flops
from headstart.training.language_model import LanguageModel
from headstart.training.random_streams import global_state, restore_global_state, start_global_stream
from headstart.training.recipe import PhaseRecipe, Recipe
from headstart.training.seams import Callback, DataStage, Objective, Schedule, TrainingSeam
from headstart.training.stream import StepStream


class Interrupted(TrainingError):
    """The run was asked to stop, and did after writing a checkpoint."""


class Report(Protocol):
    """Who is told what happens: a progress bar, the metrics files, or nobody."""

    def step(self, record: dict[str, Any]) -> None:
        """A step is done."""
        ...

    def evaluation(self, record: dict[str, Any]) -> None:
        """An evaluation is done."""
        ...


class Evaluate(Protocol):
    """Held-out quality of the model as it is."""

    def __call__(self, model: LanguageModel) -> dict[str, float]:
        """Figures by name."""
        ...


class Trainer:
    """One phase of a run. What a callback may read and change lies in its attributes.

    Attributes:
        recipe, phase: what was asked for.
        model: the network; `optimizers` hold its trained parameters.
        step: steps done in the whole run; `phase_step` in this phase.
        tokens: read in the whole run.
        stop_requested: set it, from a signal handler or a callback, and the run ends after the step in progress.
    """

    def __init__(
        self,
        recipe: Recipe,
        phase: PhaseRecipe,
        *,
        model: LanguageModel,
        optimizers: list[torch.optim.Optimizer],
        schedule: Schedule,
        span: tuple[int, int],
        stream: StepStream,
        objective: Objective,
        methods: Sequence[TrainingSeam] = (),
        evaluate: Evaluate | None = None,
        store: CheckpointStore,
        world: World,
        report: Report,
        step: int = 0,
        tokens: int = 0,
    ) -> None:
        """`span` is the steps that the schedule covers, as (steps before this phase, steps in all)."""
        self.recipe, self.phase = recipe, phase
        self.model, self.optimizers = model, optimizers
        self.schedule, self.span = schedule, span
        self.stream, self.objective = stream, objective
        self.callbacks = [method for method in methods if isinstance(method, Callback)]
        self.evaluate, self.store, self.world, self.report = evaluate, store, world, report
        self.step, self.tokens, self.phase_step = step, tokens, 0
        self.stop_requested = False
        # A data stage's state is part of the stream's: by itself it is as far ahead as the data that waits.
        parts: list[TrainingSeam] = [objective, *(method for method in methods if method is not objective)]
        self._stateful = [part for part in parts if not isinstance(part, DataStage)]
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        self._autocast = recipe.precision == "bf16"

    def run(self) -> None:
        """Train to the end of the phase; a phase that ended before it was resumed stays as it is.

        Raises:
            Interrupted: a stop was requested; a checkpoint has been written.
            TrainingError: the loss is not a number, the data ended, or a checkpoint cannot be written.
        """
        if self.phase_step == self.phase.steps:
            return
        self.model.train()
        for callback in self.callbacks:
            callback.on_start(self)
        while self.phase_step < self.phase.steps:
            self._train_step()
            ended = self.phase_step == self.phase.steps
            if ended:
                for callback in self.callbacks:
                    callback.on_end(self)
            if self.phase.eval and self.evaluate and (ended or self.phase_step % self.phase.eval.every == 0):
                self._evaluate(self.evaluate)
            stopping = self.world.any(self.stop_requested)
            if ended or stopping or self.step % self.recipe.checkpoint_every == 0:
                self.save()
            if stopping:
                raise Interrupted(f"stopped after step {self.step}; the same command goes on from there")

    def restore_peaks(self) -> None:
        """Give the optimizers their peak rates back, for a phase that goes on with them."""
        for optimizer, peaks in zip(self.optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak

    def save(self) -> None:
        """Write a checkpoint of this moment."""
        facts = {"step": self.step, "tokens": self.tokens, "phase": self.phase.name, "phase_step": self.phase_step}
        self.store.save(self.step, self.model, self.optimizers, self._state(), facts)

    def resume(self, step: int) -> None:
        """Go on from a checkpoint of this phase: bit for bit, or with other dropout where other ranks wrote it."""
        state = self.store.load(step, self.model, self.optimizers)
        facts = self.store.facts(step)
        self.step, self.tokens, self.phase_step = facts["step"], facts["tokens"], facts["phase_step"]
        self.stream.load_state_dict(state["stream"])
        for part, saved in zip(self._stateful, state["parts"], strict=True):
            part.load_state_dict(saved)
        if facts["ranks"] == self.world.size:
            restore_global_state(state["random"])
        else:
            start_global_stream(self.recipe.seed, "dropout", self.world.rank, step)

    def _train_step(self) -> None:
        """One optimizer step over one global batch."""
        began = time.perf_counter()
        batches = self.stream.next_step()
        rate = self._set_rates()
        figures = self._make_gradients(batches)
        self._refuse_broken(figures, batches)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.phase_step += 1
        self.tokens += self.phase.global_batch_tokens
        for callback in self.callbacks:
            callback.on_step(self)
        self.report.step(
            {
                "step": self.step,
                "phase": self.phase.name,
                "tokens": self.tokens,
                **figures,
                "trained_tokens": int(figures["trained_tokens"]),
                "learning_rate": rate,
                "seconds": time.perf_counter() - began,
                "flops": self.world.size * sum(training_flops(self.model.network, b.lengths) for b in batches),
                **{f"epochs/{name}": epochs for name, epochs in self.stream.epochs.items()},
            }
        )

    def _make_gradients(self, batches: list[PackedBatch]) -> dict[str, float]:
        """Clipped gradients of the mean loss over the step's tokens on all ranks.

        Returns:
            `loss` and the objective's metrics per token, `gradient_norm` before clipping, and `trained_tokens`.
        """
        sums = self._accumulate(batches)
        tokens = sums.pop("tokens")
        # So far they are of this rank's summed loss, and averaged over the ranks where there are several.
        _scale_(self._gradients(), self.world.size / tokens)
        for callback in self.callbacks:
            callback.on_gradients(self)
        figures = {name: value / tokens for name, value in sums.items()}
        figures |= {"gradient_norm": self._clip(self._gradients()), "trained_tokens": tokens}
        # The one place where the host waits for the device: a broken step must not reach the weights.
        return dict(zip(figures, torch.stack(list(figures.values())).tolist(), strict=True))

    def _accumulate(self, batches: list[PackedBatch]) -> dict[str, Tensor]:
        """Add up gradients; `loss`, `tokens` and the objective's metrics, each summed over all ranks."""
        device = self.world.device
        sums = {"loss": torch.zeros((), device=device), "tokens": torch.zeros((), device=device)}
        for batch in batches:
            for callback in self.callbacks:
                callback.on_batch(self, batch)
            with torch.autocast(device.type, torch.bfloat16) if self._autocast else nullcontext():
                loss = self.model(batch, self.objective)
            loss.total.backward()
            for name, value in {"loss": loss.total, "tokens": loss.tokens, **loss.metrics}.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float()
        return dict(zip(sums, self.world.sum(torch.stack(list(sums.values()))).unbind(), strict=True))

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]

    def _set_rates(self) -> float:
        """Scale every group's peak to this step; the first group's rate is what is logged."""
        before, steps = self.span
        factor = self.schedule.factor(before + self.phase_step, steps)
        for optimizer, peaks in zip(self.optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
        return self.optimizers[0].param_groups[0]["lr"]

    def _clip(self, gradients: list[Tensor]) -> Tensor:
        """The norm of all gradients, which are scaled down where it is above the recipe's."""
        norm: Any = nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if self.recipe.clip is not None:
            _scale_(gradients, (self.recipe.clip / (norm + 1e-6)).clamp(max=1.0))
        return norm.float()

    def _refuse_broken(self, figures: dict[str, float], batches: list[PackedBatch]) -> None:
        """Stop before a step that trains nothing or would break the weights."""
        if not figures["trained_tokens"]:
            raise TrainingError(f"no token of step {self.step + 1} is trained; give the mixture a source that is")
        loss, norm = figures["loss"], figures["gradient_norm"]
        if math.isfinite(loss) and math.isfinite(norm):
            return
        found = dict.fromkeys(document for batch in batches for row in batch.documents for document in row)
        documents = [f"{source}:{name}" for source, name in found]
        shown = ", ".join(documents[:8]) + (f" and {len(documents) - 8} more" if len(documents) > 8 else "")
        whole = self.store.steps()
        good = f"the last good checkpoint is that of step {whole[-1]}" if whole else "there is no checkpoint yet"
        raise TrainingError(
            f"the loss is {loss} and the gradient's norm {norm} at step {self.step + 1}, whose batch holds {shown}; "
            f"{good}; lower the learning rate or look at those documents"
        )

    def _evaluate(self, evaluate: Evaluate) -> None:
        self.model.eval()
        results = evaluate(self.model)
        for callback in self.callbacks:
            callback.on_eval(self, results)
        self.model.train()
        self.report.evaluation({"step": self.step, "phase": self.phase.name, "tokens": self.tokens, **results})

    def _state(self) -> dict[str, Any]:
        return {
            "stream": self.stream.state_dict(),
            "parts": [part.state_dict() for part in self._stateful],
            "random": global_state(),
        }


def _scale_(tensors: list[Tensor], factor: Tensor) -> None:
    """Multiply all in place in a few kernels."""
    torch._foreach_mul_(tensors, factor)  # pyright: ignore[reportPrivateImportUsage]
