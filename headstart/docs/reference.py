"""The keys of a file format or of a component as a table: what its class or function says, and nothing else."""

import dataclasses
import importlib
import inspect
import json
import re
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from headstart.docs.markdown import prose, table
from headstart.errors import HeadstartError

_NAMES = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Path: "path",
    Any: "any value",
    type(None): "`null`",
}
_RULES = {
    "gt": "above {}",
    "ge": "at least {}",
    "le": "at most {}",
    "min_length": "at least {}",
    "pattern": "like `{}`",
}
"""What pydantic calls the limits of a value, and how they are said."""


class DocsError(HeadstartError):
    """A page that asks for something that is not there."""


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a mapping, or one argument, as readers of YAML see it; the default of a required one is empty."""

    name: str
    type: str
    default: str
    help: str


def resolve(path: str) -> Any:
    """What `package.module:Name` names.

    Raises:
        DocsError: there is no such thing.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise DocsError(f"the documentation asks for {path!r}, which is not there: {error}") from None


def reference(thing: Any, linked: Collection[type] = ()) -> str:
    """The keys of a pydantic model, a dataclass or a function as a Markdown table.

    Args:
        thing: the class or function.
        linked: classes that have a table on the same page.
    """
    rows = [
        [f"`{key.name}`", key.type, f"`{key.default}`" if key.default else "required", prose(key.help)]
        for key in keys_of(thing, linked)
    ]
    return f'<span id="{anchor(thing)}"></span>\n\n' + table(["key", "value", "default", "meaning"], rows)


def anchor(thing: Any) -> str:
    """Where the table of a class or function stands on its page."""
    return thing.__name__.lower()


def keys_of(thing: Any, linked: Collection[type] = ()) -> list[Key]:
    """The keys in their order."""
    helps = descriptions(thing)
    if isinstance(thing, type) and issubclass(thing, BaseModel):
        return [
            Key(name, _field_type(field, linked), _field_default(field), helps.get(name, ""))
            for name, field in thing.model_fields.items()
        ]
    hints = typing.get_type_hints(thing.__init__ if isinstance(thing, type) else thing)
    return [
        Key(p.name, type_text(hints[p.name], linked), _default(p.default), helps.get(p.name, ""))
        for p in inspect.signature(thing).parameters.values()
    ]


def descriptions(thing: Any) -> dict[str, str]:
    """The sentences of a docstring's `Attributes:` or `Args:` by name; `As package.module.Name.` borrows that one's."""
    text = inspect.getdoc(thing) or ""
    borrowed = re.match(r"As `([\w.]+)\.(\w+)`", text)
    if borrowed:
        return descriptions(resolve(f"{borrowed[1]}:{borrowed[2]}"))
    found: dict[str, str] = {}
    names: list[str] = []
    for section in re.findall(r"^(?:Attributes|Args):\n((?:[ \t]+.*\n?|\n)+)", text, re.MULTILINE):
        for line in section.splitlines():
            start = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
            if start:
                names = start[1].split(", ")
            for name in names:
                found[name] = f"{found.get(name, '')} {start[2] if start else line.strip()}".strip()
    return {name: re.sub(r"\bNone\b", "`null`", text) for name, text in found.items()}


def type_text(annotation: Any, linked: Collection[type] = ()) -> str:
    """A type as a reader of YAML understands it, in Markdown."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_text(arguments[0], linked)
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_text(each, linked) for each in arguments))
    if origin is not None and issubclass(origin, Mapping):
        return f"mapping of names to {type_text(arguments[1], linked)}"
    if origin is tuple and Ellipsis not in arguments:
        return f"list of {len(arguments)} values, each {' or '.join(dict.fromkeys(map(type_text, arguments)))}"
    if origin is not None and issubclass(origin, Sequence):
        return f"list of {type_text(arguments[0], linked)}"
    if annotation in _NAMES:
        return _NAMES[annotation]
    return f"[{_spoken(annotation)}](#{anchor(annotation)})" if annotation in linked else _spoken(annotation)


def _spoken(kind: type) -> str:
    """`NearDuplicateSettings` → `near duplicate`."""
    return " ".join(re.findall("[A-Z][a-z]+", re.sub("(Recipe|Settings)$", "", kind.__name__))).lower()


def _field_type(field: FieldInfo, linked: Collection[type]) -> str:
    limits = [
        words.format(getattr(rule, attribute))
        for rule in field.metadata
        for attribute, words in _RULES.items()
        if getattr(rule, attribute, None) is not None
    ]
    return ", ".join([type_text(field.annotation, linked), *limits])


def _field_default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    return _default(field.get_default(call_default_factory=True))


def _default(value: Any) -> str:
    """As YAML has it; empty where there is none."""
    if value is inspect.Parameter.empty:
        return ""
    if isinstance(value, BaseModel):
        return "{}"
    return json.dumps(value)
