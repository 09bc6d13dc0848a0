"""What a request's tools mean for its answer: a prompt that describes them, a grammar, a parser."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from headstart.engine.params import StructuredOutputs
from headstart.errors import InvalidRequestError
from headstart.server.errors import ApiError
from headstart.server.messages import Tool
from headstart.server.service import Service
from headstart.server.tools.format import CallParser, ToolFormat
from headstart.server.tools.hermes import HermesFormat
from headstart.server.tools.llama3 import Llama3Format

FORMATS: tuple[ToolFormat, ...] = (HermesFormat(), Llama3Format())


@dataclass(frozen=True)
class ToolUse:
    """The tools of one request.

    Attributes:
        format: how the model writes calls.
        tools: described to the model.
        callable: those of them that it may call.
        forced: the answer must be a call.
        parallel: it may be several.
    """

    format: ToolFormat
    tools: list[Tool]
    callable: list[Tool]
    forced: bool
    parallel: bool

    def parser(self) -> CallParser:
        """A parser for one answer."""
        return self.format.parser({tool.function.name for tool in self.callable}, self.parallel)

    def params(self, service: Service) -> dict[str, Any]:
        """Sampling parameters: a grammar where calls are forced or a tool is `strict`, and the markers kept as text."""
        params: dict[str, Any] = {"skip_special_tokens": False}
        if self.forced or any(tool.function.strict for tool in self.callable):
            # Without `strict` only the name is held to, unless the call itself is forced.
            tools = [tool if self.forced or tool.function.strict else _loose(tool) for tool in self.callable]
            several = self.parallel and len(self.callable) == len(self.tools)
            params["structured_outputs"] = StructuredOutputs(
                grammar=self.format.grammar(tools, service.tokenizer, text=not self.forced, several=several),
                param="tools",
            )
        return params


def tool_use(
    service: Service, tools: list[Tool] | None, choice: str | dict[str, Any] | None, parallel: bool | None
) -> ToolUse | None:
    """The tools that a request may use; None where it brings none or chooses none.

    Raises:
        ApiError: 400, the model has no way to call tools, or `choice` names one that is not there.
    """
    if not tools or choice == "none":
        return None
    source = service.tokenizer.tool_template
    if source is None or not re.search(r"\btools\b", source):
        raise ApiError(400, "this model's chat template has no place for tools", param="tools")
    found = next((known for known in FORMATS if known.writes(source)), None)
    if found is None:
        raise ApiError(400, "this model's chat template writes tool calls in a form not supported here", param="tools")
    callable_ = tools
    if isinstance(choice, dict):
        name = choice["function"]["name"]
        callable_ = [tool for tool in tools if tool.function.name == name]
        if not callable_:
            raise ApiError(400, f"tool_choice names {name!r}, which is not among tools", param="tool_choice")
    return ToolUse(found, tools, callable_, choice not in (None, "auto"), parallel is not False)


@contextmanager
def blamed_on_tools(use: ToolUse | None) -> Iterator[None]:
    """Let the refusal of a grammar that was made from tools name the field `tools`."""
    try:
        yield
    except InvalidRequestError as error:
        if use is None or error.param != "tools":
            raise
        message = f"the parameters of a function in tools cannot be enforced: {str(error).partition(': ')[2] or error}"
        raise ApiError(400, message, param="tools") from None


def _loose(tool: Tool) -> Tool:
    return tool.model_copy(update={"function": tool.function.model_copy(update={"parameters": None})})
