"""One method, with options, on one model: what every check is given."""

import tempfile
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from headstart.engine.engine import Engine
from headstart.engine.intake import Prompt
from headstart.engine.seams import SLOTS, Seam
from headstart.methods import registry
from headstart.methods.registry import MethodCard
from tests.conformance import models
from tests.conformance.examples import Example
from tests.conformance.lab import make_engine


@dataclass(frozen=True)
class Case:
    """A method as a check meets it.

    Attributes:
        key: the method's.
        options: those of the examined setting, without what is made for the model.
        model: a name of `models.EVERY`.
        example: what the method declares.
    """

    key: str
    options: str = ""
    model: str = models.PLAIN
    example: Example = field(default_factory=Example)

    def __str__(self) -> str:
        return f"{self.key}:{self.options}-{self.model}" if self.options else f"{self.key}-{self.model}"

    @property
    def card(self) -> MethodCard:
        """The method's card."""
        return registry.card(self.key)

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots that it fills."""
        return self.card.slots

    @property
    def dense(self) -> bool:
        """Whether a lossy method is set to keep everything."""
        return not self.card.exact and self.options == self.example.dense

    @property
    def schedules(self) -> bool:
        """Whether it is a scheduler: then nobody else cuts prompts."""
        return "scheduler" in self.slots

    @property
    def use(self) -> str:
        """As `--use` takes it."""
        made = made_options(self.key, self.model, self.example)
        options = ",".join(filter(None, (self.options, made)))
        return f"{self.key}:{options}" if options else self.key

    @property
    def prompts(self) -> list[Prompt]:
        """What the model is asked."""
        return models.prompts(self.model)

    def method(self, min_context: int = 0) -> Any:
        """A new instance, which acts from so many tokens of context on."""
        return acting(self.use, min_context)

    def engine(self, *also: Seam, **settings: Any) -> Engine:
        """An engine with the method in force, beside others."""
        return make_engine(self.model, self.method(), *also, **settings)

    def questions(self) -> list[str]:
        """The names of what the engine asks the method while requests run, from its seams' abstract methods."""
        seams: list[Any] = [SLOTS[slot] for slot in self.slots]
        names = {name for seam in seams for name in seam.__abstractmethods__ if callable(getattr(seam, name))}
        return sorted(names - {*_AT_START, *_AT_THE_END})


def acting(use: str, min_context: int = 0) -> Any:
    """The method that this describes, acting from so many tokens of context on, whatever its card says."""
    made = registry.build(use, "inference")
    object.__setattr__(made, "card", replace(made.card, min_context=min_context))
    return made


_FILES = tempfile.TemporaryDirectory(prefix="conformance-")
_AT_START, _AT_THE_END = ("allocate", "bind", "layers"), ("drop",)
"""Questions that are asked before the first request, or after the last."""


@cache
def made_options(key: str, model: str, example: Example) -> str:
    """What a method needs for a model, made once, as options that name it."""
    if example.made is None:
        return ""
    directory = Path(_FILES.name) / f"{key}-{model}"
    directory.mkdir()
    return example.made(models.shared(model), directory)
