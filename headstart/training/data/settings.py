"""What `headstart data prepare` does, in strict YAML. A key that nobody knows is an error that names the nearest."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator, validate_call

from headstart.errors import did_you_mean
from headstart.strict_yaml import StrictLoader
from headstart.training.data import stages
from headstart.training.data.errors import DataError
from headstart.training.data.stages import Stage

Scalar = str | int | float


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class TrainTokenizer(_Strict):
    """A new tokenizer, as `headstart.training.data.bpe.train_tokenizer` makes it.

    Attributes:
        vocab_size: number of ids, special tokens included.
        special_tokens: they get the first ids.
        bos_token, eos_token: which of them open and end a text.
        add_bos: put the BOS before every prompt.
        chat_template: a file with the Jinja source, relative to the settings.
        max_length: tokens of the longest input, for `model_max_length`.
        sources: what it is trained on; None is every source that is read from files.
        fraction: share of those sources' documents.
    """

    vocab_size: int
    special_tokens: tuple[str, ...] = ("<|endoftext|>",)
    bos_token: str | None = None
    eos_token: str | None = None
    add_bos: bool = False
    chat_template: Path | None = None
    max_length: int | None = None
    sources: tuple[str, ...] | None = None
    fraction: float = Field(default=1.0, gt=0, le=1)


class TokenizerSettings(_Strict):
    """One of the two.

    Attributes:
        path: a directory with `tokenizer.json`, relative to the settings.
        train: make one.
    """

    path: Path | None = None
    train: TrainTokenizer | None = None

    @model_validator(mode="after")
    def _one(self) -> "TokenizerSettings":
        if (self.path is None) == (self.train is None):
            raise ValueError("give either path or train")
        return self


class HeldOutSettings(_Strict):
    """As `headstart.training.data.split.Split`."""

    fraction: float = Field(gt=0, le=1)
    by: str | None = None
    seed: int = 0


class NearDuplicateSettings(_Strict):
    """As `headstart.training.data.dedup.Deduplicator`."""

    threshold: float = Field(default=0.8, gt=0, le=1)
    words: int = Field(default=5, ge=1)
    permutations: int = Field(default=128, ge=16)


class GuardSettings(_Strict):
    """As `headstart.training.data.split.HeldOutGuard`."""

    threshold: float = Field(default=0.5, gt=0, le=1)
    words: int = Field(default=8, ge=1)


class GenerateSettings(_Strict):
    """Documents that code makes.

    Attributes:
        call: `package.module:function`, called as `function(index, seed, **options)`; it gives a `TextDocument`.
        count: how many documents, with the indices from 0.
        seed: of all of them.
        options: further arguments. `{root}` in a string stands for the directory that paths are relative to.
    """

    call: str
    count: int = Field(gt=0)
    seed: int = 0
    options: dict[str, Any] = {}


class SourceSettings(_Strict):
    """One source.

    Attributes:
        path: file, or pattern such as `text/*.jsonl.xz`, or several of them, relative to the root.
        generate: documents that code makes, instead of files.
        text_field, id_field, separator: as in `read_documents`.
        convert: `package.module:function`, called with each record and its id; it gives a `TextDocument`, several, or
            None.
        stages: names of `headstart.training.data.stages` with their options, applied in this order.
        tags: metadata of every document.
        held_out: which documents training never sees.
        deduplicate: leave out near-duplicates of earlier documents, here and in the sources before.
        guard: leave out documents that share much text with held-out ones of any source.
    """

    path: str | tuple[str, ...] | None = None
    generate: GenerateSettings | None = None
    text_field: str = "text"
    id_field: str | None = None
    separator: str | None = None
    convert: str | None = None
    stages: tuple[dict[str, dict[str, Any]], ...] = ()
    tags: dict[str, Scalar] = {}
    held_out: HeldOutSettings | None = None
    deduplicate: bool = True
    guard: bool = True

    @model_validator(mode="after")
    def _one(self) -> "SourceSettings":
        if (self.path is None) == (self.generate is None):
            raise ValueError("give either path or generate")
        return self

    def build_stages(self) -> list[Stage]:
        """The stages, and the tags.

        Raises:
            DataError: an unknown stage or option.
        """
        built = [_stage(name, options) for each in self.stages for name, options in each.items()]
        return [*built, stages.tagged(self.tags)] if self.tags else built


class DataSettings(_Strict):
    """All of `data.yaml`.

    Attributes:
        tokenizer: an existing or a new one.
        sources: by name, prepared in this order.
        near_duplicates: how they are found; None keeps them all.
        guard: how text that is held out is recognised in training documents.
    """

    tokenizer: TokenizerSettings
    sources: dict[str, SourceSettings] = Field(min_length=1)
    near_duplicates: NearDuplicateSettings | None = NearDuplicateSettings()
    guard: GuardSettings = GuardSettings()


_STAGES: dict[str, Callable[..., Stage]] = {
    "normalise": stages.normalise,
    "length": stages.length,
    "keep_where": stages.keep_where,
    "fields": stages.fields,
}


def read_settings(path: Path) -> DataSettings:
    """Read `data.yaml`.

    Raises:
        DataError: the file cannot be read, or a key or value is wrong; the sentence names it.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the settings {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise DataError(f"the settings {path} are not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise DataError(f"the settings {path} hold themselves or are nested too deeply") from None
    if not isinstance(content, dict):
        raise DataError(f"the settings {path} are no mapping of keys to values")
    try:
        settings = DataSettings.model_validate(content)
    except ValidationError as error:
        raise DataError(f"{path}: {_explain(error)}") from None
    for name, source in settings.sources.items():
        if Path(name).name != name or name.startswith(".") or name == "tokenizer":
            raise DataError(f"{path}: {name!r} cannot be the name of a source, since it names a directory")
        source.build_stages()
    return settings


def resolve(dotted: str) -> Callable[..., Any]:
    """The function that `package.module:function` names.

    Raises:
        DataError: there is none.
    """
    module, colon, name = dotted.partition(":")
    try:
        function = getattr(importlib.import_module(module), name) if colon else None
    except (ImportError, AttributeError, ValueError) as error:
        raise DataError(f"{dotted!r} cannot be imported: {error}") from None
    if not callable(function):
        raise DataError(f"{dotted!r} names no function; write package.module:function")
    return function


def _stage(name: str, options: dict[str, Any]) -> Stage:
    if name not in _STAGES:
        raise DataError(f"{name!r} is no stage{did_you_mean(name, _STAGES)}; there are {', '.join(_STAGES)}")
    try:
        return validate_call(_STAGES[name])(**options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"stage {name}: {where}: {first['msg']}") from None


def _explain(error: ValidationError) -> str:
    """The first problem in one sentence."""
    first = error.errors()[0]
    *parents, last = [str(part) for part in first["loc"]] or ["the settings"]
    where = ".".join([*parents, last])
    if first["type"] != "extra_forbidden":
        return f"{where}: {first['msg'].removeprefix('Value error, ')}"
    model: Any = DataSettings
    for part in parents:
        fields = getattr(model, "model_fields", None)
        model = _inner(fields[part].annotation) if fields and part in fields else model
    known = list(getattr(model, "model_fields", ()))
    return f"{where} is an unknown key{did_you_mean(last, known)}"


def _inner(annotation: Any) -> Any:
    """The model inside an annotation such as `Model | None` or `dict[str, Model]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [_inner(part) for part in getattr(annotation, "__args__", ())]
    return next((model for model in found if model is not None), None)
