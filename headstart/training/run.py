"""A run from its recipe: phases one after the other, resumed where an earlier process stopped, exported at the end."""

import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.training.assembly import (
    OPTIMIZERS,
    SCHEDULES,
    build_named,
    build_network,
    checkpoint_activations_,
    compile_,
    plain_copy,
)
from headstart.training.checkpoint_store import CheckpointStore
from headstart.training.distributed import World, shard_, world
from headstart.training.errors import TrainingError
from headstart.training.export import export_run, fold_and_save
from headstart.training.flops import measured_peak
from headstart.training.held_out import HeldOut
from headstart.training.language_model import LanguageModel
from headstart.training.loop import Trainer
from headstart.training.metrics import RunReport, plot_run
from headstart.training.random_streams import start_global_stream
from headstart.training.recipe import Recipe, differences, read_recipe, resolve, write_recipe
from headstart.training.seams import (
    DataStage,
    NextToken,
    Objective,
    OptimizerFactory,
    Schedule,
    Transform,
)
from headstart.training.stack import TrainingStack
from headstart.training.stream import StepStream


@dataclass
class RunOptions:
    """How a run is carried out, beside what it computes.

    Attributes:
        out: the run's directory.
        base: what relative paths of the recipe start from.
        device: "cpu" or "cuda"; None is CUDA where there is one.
        tensorboard: write TensorBoard files.
        export_dtype: of the exported weights.
        console: where progress is shown; None is standard error.
    """

    out: Path
    base: Path
    device: str | None = None
    tensorboard: bool = False
    export_dtype: torch.dtype = torch.bfloat16
    console: Console | None = None


@dataclass
class _Position:
    """How far a run is: steps and tokens done, and where the last phase left the data."""

    step: int = 0
    tokens: int = 0
    stream: dict[str, Any] | None = None


class Run:
    """One process's part in carrying out a recipe.

    Attributes:
        recipe, options, world: as given.
        network: the network, changed in place.
        stacks: the methods of each phase.
        optimizers: those of the phase in progress.
    """

    def __init__(self, recipe: Recipe, options: RunOptions, where: World) -> None:
        self.recipe, self.options, self.world = recipe, options, where
        self.tokenizer_path = find_tokenizer(recipe, options.base)
        self.tokenizer = Tokenizer.from_directory(self.tokenizer_path)
        self.stacks = [TrainingStack(phase.use) for phase in recipe.phases]
        self.optimizers: list[torch.optim.Optimizer] = []
        network = build_network(recipe.model, recipe.seed, options.base)
        if self.tokenizer.vocab_size > network.config.vocab_size:
            raise TrainingError(
                f"the tokenizer of {self.tokenizer_path} has {self.tokenizer.vocab_size} tokens, and the model "
                f"{network.config.vocab_size}; raise model.config.vocab_size"
            )
        # Before anything is put around blocks, and before they are shared out over ranks.
        for transform in self.stacks[0].of(Transform):
            transform.apply_(network)
        self.network = network.to(where.device)
        if recipe.activation_checkpointing:
            checkpoint_activations_(self.network)
        self.model = LanguageModel(self.network)
        if where.device.type == "cuda" and recipe.precision == "bf16":
            # What autocast leaves in float32 rounds no more in TF32 than the rest does.
            torch.set_float32_matmul_precision("high")
        if recipe.compile if recipe.compile is not None else where.device.type == "cuda":
            compile_(self.network)
        if where.mesh is not None:
            shard_(self.model, where.mesh)
        self.store = CheckpointStore(options.out / "checkpoints", where, recipe.keep)

    def execute(self) -> None:
        """Train all phases that are not done yet.

        Raises:
            TrainingError: see `Trainer.run`.
        """
        saved = self.store.steps()[-1:]
        facts = self.store.facts(saved[0]) if saved else {"phase": self.recipe.phases[0].name, "step": 0}
        current = next(i for i, phase in enumerate(self.recipe.phases) if phase.name == facts["phase"])
        start_global_stream(self.recipe.seed, "dropout", self.world.rank)
        with self._reporting(facts["step"]) as report:
            position = _Position()
            for number in range(len(self.recipe.phases)):
                self._enter(number)
                if number < current:
                    continue
                with closing(self._stream(number, position.stream)) as stream:
                    trainer = self._trainer(number, stream, report, position)
                    if saved and number == current:
                        trainer.resume(saved[0])
                    with _stopping(trainer):
                        trainer.run()
                    position = _Position(trainer.step, trainer.tokens, stream.state_dict())
                # A phase that keeps the optimizer goes on from the peaks, not from the last step's rates.
                trainer.restore_peaks()

    def export(self, directory: Path) -> None:
        """Write the network as it is as a Hugging Face directory, transforms folded away.

        Raises:
            CheckpointError: the directory cannot be written.
        """
        if self.world.mesh is not None:
            raise TrainingError("a network that is shared out over ranks is exported from its checkpoint: export_run")
        fold_and_save(plain_copy(self.network), self.stacks, directory, self.options.export_dtype, self.tokenizer_path)

    def _enter(self, number: int) -> None:
        """Let the network and the optimizers be those of a phase, before any checkpoint fills them."""
        phase, stack = self.recipe.phases[number], self.stacks[number]
        before = dict(self.network.named_parameters())
        for transform in stack.of(Transform):
            transform.apply_(self.network)
        after = dict(self.network.named_parameters())
        if self.world.mesh is not None and any(before.get(name) is not after[name] for name in after):
            raise TrainingError(
                f"phase {phase.name} changes weights that are shared out over ranks already; use its transform from "
                "the first phase on, or train in one process"
            )
        factory = stack.one(OptimizerFactory)
        if factory is None and phase.optimizer is not None:
            factory = build_named(OPTIMIZERS, "optimizer", phase.optimizer)
        if factory is not None:
            self.optimizers = factory.build(self.network)
        held = Counter(
            id(p) for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]
        )
        for name, parameter in after.items():
            if parameter.requires_grad and held[id(parameter)] != 1:
                what = "two optimizers move" if held[id(parameter)] else "no optimizer moves"
                raise TrainingError(
                    f"phase {phase.name}: {what} the weight {name}; give the phase an optimizer of its own"
                )

    def _stream(self, number: int, after: dict[str, Any] | None) -> StepStream:
        return StepStream(
            self.recipe.phases[number],
            seed=self.recipe.seed,
            base=self.options.base,
            tokenizer=self.tokenizer,
            stages=self.stacks[number].of(DataStage),
            world=self.world,
            after=after,
        )

    def _trainer(self, number: int, stream: StepStream, report: RunReport, position: _Position) -> Trainer:
        recipe, phase, stack = self.recipe, self.recipe.phases[number], self.stacks[number]
        schedule, span = self._schedule(number)
        evaluate = None
        if phase.eval is not None:
            evaluate = HeldOut(
                phase.eval,
                self.options.base,
                sequence_length=phase.sequence_length,
                tokenizer=self.tokenizer,
                world=self.world,
                autocast=recipe.precision == "bf16",
            )
        return Trainer(
            recipe,
            phase,
            model=self.model,
            optimizers=self.optimizers,
            schedule=schedule,
            span=span,
            stream=stream,
            objective=stack.one(Objective) or NextToken(),
            methods=stack.methods,
            evaluate=evaluate,
            store=self.store,
            world=self.world,
            report=report,
            step=position.step,
            tokens=position.tokens,
        )

    def _schedule(self, number: int) -> tuple[Schedule, tuple[int, int]]:
        """The schedule that covers a phase, the steps it covered before, and all that it covers."""
        phases = self.recipe.phases
        first = max(i for i in range(number + 1) if phases[i].schedule is not None)
        after = next((i for i in range(first + 1, len(phases)) if phases[i].schedule is not None), len(phases))
        named = phases[first].schedule
        assert named is not None
        before = sum(phase.steps for phase in phases[first:number])
        return build_named(SCHEDULES, "schedule", named), (before, sum(p.steps for p in phases[first:after]))

    @contextmanager
    def _reporting(self, resumed_at: int) -> Iterator[RunReport]:
        """The report of the leading rank; the others write theirs to nowhere."""
        leads = self.world.leads
        precision = torch.bfloat16 if self.recipe.precision == "bf16" else torch.float32
        peak = measured_peak(self.world.device, precision) * self.world.size
        console = self.options.console if leads else Console(quiet=True)
        with (
            nullcontext(self.options.out) if leads else tempfile.TemporaryDirectory() as directory,
            RunReport(
                Path(directory),
                self.recipe.steps,
                log_every=self.recipe.log_every,
                peak_flops=peak,
                resumed_at=resumed_at,
                tensorboard=self.options.tensorboard and leads,
                console=console,
            ) as report,
        ):
            yield report


def train(recipe_path: Path, options: RunOptions, overrides: tuple[str, ...] = (), use: tuple[str, ...] = ()) -> Path:
    """Carry out a recipe, or go on with it; the exported model's directory is returned.

    Raises:
        TrainingError, CheckpointError, MethodError: one sentence on what is wrong.
    """
    recipe = read_recipe(recipe_path, overrides, use)
    recipe = resolve(recipe, options.base, find_tokenizer(recipe, options.base))
    with world(options.device) as where:
        _refuse_other_recipe(recipe, options.out, where)
        run = Run(recipe, options, where)
        if where.leads:
            write_recipe(recipe, options.out / "recipe.yaml")
        try:
            run.execute()
        finally:
            # What stopped the run is more important than its picture.
            with suppress(OSError):
                if where.leads:
                    plot_run(options.out)
        if where.leads:
            export_run(options.out, options.out / "model", options.export_dtype)
        where.barrier()
    return options.out / "model"


def find_tokenizer(recipe: Recipe, base: Path) -> Path:
    """The directory of a recipe's tokenizer: the one it names, else the one nearest to its first source.

    Raises:
        TrainingError: there is none.
    """
    hint = "prepare the recipe's data with `headstart data prepare`, or name another with the recipe's key tokenizer"
    if recipe.tokenizer is not None:
        named = base / recipe.tokenizer
        if not (named / "tokenizer.json").is_file():
            raise TrainingError(f"{named} has no tokenizer.json; {hint}")
        return named
    source = next(iter(recipe.phases[0].sources.values()))
    for parent in (base / source.path).parents:
        if (parent / "tokenizer" / "tokenizer.json").is_file():
            return parent / "tokenizer"
    raise TrainingError(f"no tokenizer lies beside {source.path}; {hint}")


def _refuse_other_recipe(recipe: Recipe, out: Path, where: World) -> None:
    """A directory with checkpoints goes on with the recipe that they are of, or not at all."""
    if not CheckpointStore(out / "checkpoints", where).steps():
        return
    changed = differences(read_recipe(out / "recipe.yaml"), recipe)
    if changed:
        more = f" and {len(changed) - 8} more" if len(changed) > 8 else ""
        raise TrainingError(
            f"the recipe differs from that of the run in {out}: {', '.join(changed[:8])}{more}; "
            "give another --out, or put these keys back"
        )


@contextmanager
def _stopping(trainer: Trainer) -> Iterator[None]:
    """SIGTERM and the first Ctrl-C end the run after the step in progress; the second Ctrl-C at once."""
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread hears signals.
        yield
        return

    def ask(number: int, _frame: FrameType | None) -> None:
        if trainer.stop_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        trainer.stop_requested = True

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
