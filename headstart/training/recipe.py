"""Recipes: what a run does, in strict YAML. A key that nobody knows is an error that names the nearest."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from headstart.checkpoints.default import embedded_checkpoints
from headstart.errors import did_you_mean
from headstart.strict_yaml import StrictLoader
from headstart.training.errors import TrainingError

_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}


def _amount(value: Any) -> Any:
    """`300M` → 300000000."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgb])", value.strip().replace("_", "").lower())
    return round(float(found[1]) * _UNITS[found[2]]) if found else value


Amount = Annotated[int, BeforeValidator(_amount), Field(gt=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelRecipe(_Strict):
    """Where the network comes from: one of the two.

    Attributes:
        config: a Hugging Face config; weights are drawn from the run's seed.
        checkpoint: a Hugging Face directory, or `default` for the built-in model, whose weights are the start.
        embedding_std: spread of drawn embeddings.
    """

    config: dict[str, Any] | None = None
    checkpoint: str | None = None
    embedding_std: float = 0.02

    @model_validator(mode="after")
    def _one(self) -> "ModelRecipe":
        if (self.config is None) == (self.checkpoint is None):
            raise ValueError("give either config or checkpoint")
        return self


class SourceRecipe(_Strict):
    """One source of a mixture.

    Attributes:
        path: a directory of token shards.
        weight: its share of the tokens, relative to the other sources'.
        whole: its documents are never cut.
        repeat: whether it begins anew, in another order, when it has been read; else the run ends with it.
        piece_tokens: long documents are drawn in parts of at most so many tokens, each shuffled like a document.
    """

    path: str
    weight: float = Field(1.0, gt=0)
    whole: bool = False
    repeat: bool = True
    piece_tokens: Amount | None = None


class EvalRecipe(_Strict):
    """Held-out loss on the way.

    Attributes:
        sources: directories of token shards, by name.
        every: steps between evaluations; the end of a phase is always one.
        tokens: at most so many of each source.
    """

    sources: dict[str, str]
    every: int = Field(200, gt=0)
    tokens: Amount = 1_000_000


class Named(BaseModel):
    """An optimizer or schedule by name, with its arguments."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        """What is given beside the name."""
        return dict(self.model_extra or {})


class PhaseRecipe(_Strict):
    """One stretch of training on one mixture.

    Attributes:
        name: of the phase, unique in the recipe.
        tokens: its budget, rounded down to whole steps.
        sequence_length: tokens of a packed row.
        global_batch_tokens: tokens of one optimizer step, over all ranks and accumulation.
        micro_batch_tokens: at most so many go through the model at once on a rank.
        sources: the mixture.
        packing: "split" cuts documents at the ends of rows and goes on in the next; "complete" drops what overhangs.
        use: training methods, as `--use` takes them.
        optimizer: None keeps that of the phase before, its state included.
        schedule: None goes on along that of the phase before, which then spans both.
        eval: None evaluates nothing.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    tokens: Amount
    sequence_length: Amount
    global_batch_tokens: Amount
    micro_batch_tokens: Amount | None = None
    sources: dict[str, SourceRecipe] = Field(min_length=1)
    packing: Literal["split", "complete"] = "split"
    use: tuple[str, ...] = ()
    optimizer: Named | None = None
    schedule: Named | None = None
    eval: EvalRecipe | None = None

    @model_validator(mode="after")
    def _divisible(self) -> "PhaseRecipe":
        if self.global_batch_tokens % self.sequence_length:
            raise ValueError("global_batch_tokens must be a multiple of sequence_length")
        if self.tokens < self.global_batch_tokens:
            raise ValueError("tokens must be at least global_batch_tokens, one step")
        if self.micro_batch_tokens is not None and self.micro_batch_tokens % self.sequence_length:
            raise ValueError("micro_batch_tokens must be a multiple of sequence_length")
        return self

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.tokens // self.global_batch_tokens

    @property
    def rows(self) -> int:
        """Packed rows of one step."""
        return self.global_batch_tokens // self.sequence_length


class Recipe(_Strict):
    """A whole run.

    Attributes:
        seed: of every named stream of randomness.
        tokenizer: a directory with `tokenizer.json`; None takes the one beside the data.
        precision: "bf16" computes under autocast with float32 weights, "fp32" does not.
        compile: None compiles on a GPU only.
        activation_checkpointing: recompute each block in the backward pass.
        clip: the gradient's norm is at most this; None leaves it.
        checkpoint_every: steps between checkpoints; the end of a phase, Ctrl-C and SIGTERM make one too.
        keep: how many checkpoints stay.
        log_every: steps between lines of `metrics.jsonl`.
        phases: in order.
    """

    name: str
    seed: int = 0
    model: ModelRecipe
    tokenizer: str | None = None
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: bool | None = None
    activation_checkpointing: bool = False
    clip: float | None = Field(1.0, gt=0)
    checkpoint_every: int = Field(500, gt=0)
    keep: int = Field(2, ge=1)
    log_every: int = Field(10, gt=0)
    phases: tuple[PhaseRecipe, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _phases(self) -> "Recipe":
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise ValueError("two phases have the same name")
        if self.phases[0].optimizer is None or self.phases[0].schedule is None:
            raise ValueError("the first phase needs an optimizer and a schedule")
        return self

    @property
    def steps(self) -> int:
        """Optimizer steps of all phases."""
        return sum(phase.steps for phase in self.phases)


_FREE_TO_CHANGE = r"name|tokenizer|checkpoint_every|keep|log_every|compile|.*\.path|phases\.\d+\.eval(\..*)?"
"""What does not change the numbers of a run. That data which was moved is the same is checked by its content."""


def read_recipe(path: Path, overrides: tuple[str, ...] = (), use: tuple[str, ...] = ()) -> Recipe:
    """Read a YAML recipe.

    Args:
        path: the file. Paths in it are relative to it.
        overrides: `a.b=c` with a YAML value; phases are named by their name or number.
        use: training methods for every phase, beside its own.

    Raises:
        TrainingError: the file cannot be read, is no recipe, or an override names nothing.
    """
    try:
        # What anchors share becomes separate: an override means the one place that it names.
        content = _unshared(yaml.load(path.read_text(encoding="utf-8"), StrictLoader))
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"the recipe {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise TrainingError(f"the recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise TrainingError(f"the recipe {path} holds itself or is nested too deeply") from None
    if not isinstance(content, dict):
        raise TrainingError(f"the recipe {path} is no mapping of keys to values")
    for override in overrides:
        _override(content, override)
    recipe = recipe_of(content, str(path))
    phases = tuple(phase.model_copy(update={"use": (*phase.use, *use)}) for phase in recipe.phases)
    return recipe.model_copy(update={"phases": phases})


def recipe_of(content: dict[str, Any], source: str) -> Recipe:
    """A recipe from plain values.

    Raises:
        TrainingError: an unknown key (the nearest is named), a missing one or a bad value.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise TrainingError(f"{source}: {_explain(error)}") from None


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe, every default spelled out.

    Raises:
        TrainingError: it cannot be written.
    """
    content = yaml.safe_dump(json.loads(recipe.model_dump_json()), sort_keys=False, allow_unicode=True)
    beside = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(content, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error.strerror or error}") from None


def differences(old: Recipe, new: Recipe) -> list[str]:
    """The keys, dotted, that differ and change what a run computes."""
    found: list[str] = []
    _compare(json.loads(old.model_dump_json()), json.loads(new.model_dump_json()), "", found)
    return [key for key in found if not re.fullmatch(_FREE_TO_CHANGE, key)]


def resolve(recipe: Recipe, base: Path, tokenizer: Path) -> Recipe:
    """The same recipe with absolute paths, to be read from anywhere.

    Args:
        recipe: as it was read.
        base: what its relative paths start from.
        tokenizer: the tokenizer that it names, or that was found for it.
    """

    def absolute(path: str) -> str:
        return str((base / path).absolute())

    def of_phase(phase: PhaseRecipe) -> PhaseRecipe:
        held_out = phase.eval
        if held_out is not None:
            sources = {name: absolute(path) for name, path in held_out.sources.items()}
            held_out = held_out.model_copy(update={"sources": sources})
        sources = {name: s.model_copy(update={"path": absolute(s.path)}) for name, s in phase.sources.items()}
        return phase.model_copy(update={"sources": sources, "eval": held_out})

    model = recipe.model
    if model.checkpoint is not None and model.checkpoint not in embedded_checkpoints():
        model = model.model_copy(update={"checkpoint": absolute(model.checkpoint)})
    phases = tuple(map(of_phase, recipe.phases))
    return recipe.model_copy(update={"model": model, "tokenizer": str(tokenizer.absolute()), "phases": phases})


def _compare(old: Any, new: Any, path: str, found: list[str]) -> None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            _compare(old.get(key), new.get(key), f"{path}.{key}" if path else key, found)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (a, b) in enumerate(zip(old, new, strict=True)):
            _compare(a, b, f"{path}.{number}", found)
    elif old != new:
        found.append(path)


def _unshared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _override(content: dict[str, Any], override: str) -> None:
    """Set one value in place."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise TrainingError(f"write an override as a.b=value, not {override!r}")
    *parents, last = path.split(".")
    place: Any = content
    for part in parents:
        place = _child(place, part, override)
    if isinstance(place, list):
        raise TrainingError(f"the override {override!r} replaces a whole phase; name a key of it")
    if not isinstance(place, dict):
        raise TrainingError(f"the override {override!r} goes into {parents[-1]!r}, which holds a plain value")
    try:
        place[last] = yaml.load(text, StrictLoader)
    except yaml.YAMLError:
        place[last] = text


def _child(place: Any, part: str, override: str) -> Any:
    if isinstance(place, dict):
        return place.setdefault(part, {})
    if isinstance(place, list):
        for number, item in enumerate(place):
            if part == str(number) or (isinstance(item, dict) and item.get("name") == part):
                return item
        names = [item.get("name", str(i)) for i, item in enumerate(place) if isinstance(item, dict)]
        raise TrainingError(f"the override {override!r} names no phase{did_you_mean(part, names)}")
    raise TrainingError(f"the override {override!r} goes into {part!r}, which holds a plain value")


def _explain(error: ValidationError) -> str:
    """The first problem of a recipe in one sentence."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the recipe"
    if first["type"] == "extra_forbidden":
        model = _model_at(first["loc"][:-1])
        known = list(model.model_fields) if model else []
        return f"unknown key {where!r}{did_you_mean(str(first['loc'][-1]), known)}"
    if first["type"] == "missing":
        return f"{where} is missing"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"


def _model_at(path: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The part of a recipe that lies at a path."""
    places: dict[str, type[BaseModel]] = {"model": ModelRecipe, "phases": PhaseRecipe, "eval": EvalRecipe}
    if len(path) >= 2 and path[-2] == "sources":
        return SourceRecipe
    names = [part for part in path if isinstance(part, str)]
    return places.get(names[-1]) if names else Recipe
