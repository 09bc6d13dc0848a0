"""Chat templates, run in a sandbox: they come with checkpoints and are code of strangers."""

import json
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from headstart.errors import CheckpointError, InvalidRequestError


class ChatTemplate:
    """A template that turns messages into a prompt.

    Attributes:
        text: its jinja source.
    """

    def __init__(self, text: str, source: str) -> None:
        self.text = text
        self._source = source

    def render(self, messages: list[dict[str, Any]], /, **variables: Any) -> str:
        """The prompt.

        Raises:
            CheckpointError: the template cannot be parsed.
            InvalidRequestError: the template refuses these messages or fails on them.
        """
        template = self._compiled
        if not all(isinstance(message, dict) for message in messages):
            raise InvalidRequestError("every message must be an object with role and content", "messages")
        # Clients send null for what is absent, which templates would print as the word None.
        given = [{key: value for key, value in m.items() if value is not None} for m in messages]
        try:
            # Only plain JSON values may enter: methods of richer objects are unknown to the sandbox.
            plain = json.loads(json.dumps({"messages": given, "documents": None} | variables))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequestError(f"messages and tools must be plain JSON values: {error}", "messages") from None
        try:
            return template.render(plain)
        except _RefusalError as refusal:
            raise InvalidRequestError(f"the chat template refuses these messages: {refusal}", "messages") from None
        except Exception as error:  # a stranger's code may raise anything
            raise InvalidRequestError(f"the chat template fails on these messages: {error}", "messages") from None

    @cached_property
    def _compiled(self) -> Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            return environment.from_string(self.text)
        except TemplateError as error:
            raise CheckpointError(f"the chat template in {self._source} cannot be parsed: {error}") from None


def read_templates(directory: Path, tokenizer_config: dict[str, Any]) -> dict[str, str]:
    """The templates of a checkpoint directory by name; the usual one is called "default".

    They stand in `chat_template.jinja` and `additional_chat_templates/NAME.jinja`, or in
    `tokenizer_config.json` as one string or as a list of named ones.

    Raises:
        CheckpointError: the field in `tokenizer_config.json` is neither, or a file cannot be read as text.
    """
    found: dict[str, str] = {}
    given = tokenizer_config.get("chat_template")
    if isinstance(given, str):
        found["default"] = given
    elif isinstance(given, list):
        try:
            found.update({entry["name"]: entry["template"] for entry in given})
        except (TypeError, KeyError):
            raise CheckpointError(
                f"chat_template in {directory / 'tokenizer_config.json'} must be a string or a list of "
                "objects with name and template"
            ) from None
    elif given is not None:
        raise CheckpointError(
            f"chat_template in {directory / 'tokenizer_config.json'} must be a string or a list of "
            "objects with name and template"
        )
    for path in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = _read(path)
    single = directory / "chat_template.jinja"
    if single.is_file():
        found["default"] = _read(single)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise CheckpointError(f"the chat template {path} cannot be read: {reason}") from None


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's words for training; a prompt keeps what is inside."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _RefusalError(Exception):
    """Raised by a template through `raise_exception`."""


def _refuse(message: str) -> NoReturn:
    raise _RefusalError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML and sorts keys, which is not what models were trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
