"""`headstart chat`: a conversation in the terminal."""

import contextlib
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from headstart.cli.generate import as_dict, show
from headstart.cli.options import EngineOptions, SamplingOptions, with_options
from headstart.cli.report import Report, seconds
from headstart.cli.stream import follow
from headstart.errors import HeadstartError

if TYPE_CHECKING:
    from headstart.engine.llm import LLM
    from headstart.engine.outputs import RequestOutput
    from headstart.engine.params import SamplingParams

_HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops a reply"


@with_options
def chat(
    engine: EngineOptions,
    sampling: SamplingOptions,
    system: Annotated[
        str | None, typer.Option(help="What the model is told before the conversation.", show_default=False)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each reply as one line of JSON, with its report.")
    ] = False,
) -> None:
    """Talk with a model.

    Replies stream as they are generated. The conversation is kept, and what was read of it before comes from
    the prefix cache: the line under each reply says how much. Lines piped in are turns too.
    """
    sampling.check()
    llm = engine.load()
    conversation = Conversation(llm, sampling.params(llm), system)
    interactive = sys.stdin.isatty() and not as_json
    err = Console(stderr=True, highlight=False, soft_wrap=True)
    if interactive:
        _enable_line_editing()
        err.print(_HELP, style="dim")
    while (line := _read_turn(interactive)) is not None:
        text = line.strip()
        if text == "/exit":
            break
        if text == "/reset":
            conversation.reset()
        elif text == "/help":
            err.print(_HELP, style="dim")
        elif text:
            try:
                _answer(conversation, text, as_json=as_json, err=err)
            except HeadstartError as error:
                if not interactive:
                    raise
                err.print(str(error), style="red", markup=False)


class Conversation:
    """The turns so far, and the engine that continues them.

    Args:
        llm: the engine.
        params: how replies are sampled.
        system: an opening system message, kept by `reset`.

    Attributes:
        messages: dicts with `role` and `content`.
    """

    def __init__(self, llm: "LLM", params: "SamplingParams", system: str | None = None) -> None:
        self._llm, self._params = llm, params
        self._opening = [{"role": "system", "content": system}] if system else []
        self.messages: list[dict[str, Any]] = list(self._opening)

    def reset(self) -> None:
        """Forget all turns but the system message."""
        self.messages = list(self._opening)

    def say(self, text: str, show: Callable[[str], None]) -> tuple["RequestOutput | None", int]:
        """Add a user turn and the reply to it; `show` gets each piece of the reply's text.

        A conversation too long for the model loses its oldest turns. Interrupting the reply
        (KeyboardInterrupt) keeps what was said of it.

        Returns:
            the finished request (None if interrupted), and how many old messages were dropped.

        Raises:
            HeadstartError: the model has no chat template, or this turn alone is too long for it.
        """
        self.messages.append({"role": "user", "content": text})
        said: list[str] = []

        def keep(piece: str) -> None:
            said.append(piece)
            show(piece)

        result = None
        try:
            prompt, dropped = self._fitting_prompt()
            stream = self._llm.stream(prompt, self._params)
            # Closing a stream aborts its request, which frees the pages.
            with contextlib.closing(stream), contextlib.suppress(KeyboardInterrupt):
                result = follow(stream, keep)
        except HeadstartError:
            self.messages.pop()
            raise
        self.messages.append({"role": "assistant", "content": "".join(said)})
        return result, dropped

    def _fitting_prompt(self) -> tuple[dict[str, list[int]], int]:
        """The conversation as token ids that leave room for a reply; the oldest exchanges go first."""
        longest = self._llm.max_model_len
        room = longest - min(self._params.max_tokens or longest, longest // 2)
        first = len(self._opening)
        dropped = 0
        while len(ids := self._encode()) > room and len(self.messages) > first + 1:
            del self.messages[first : first + 2]
            dropped += 2
        return {"prompt_token_ids": ids}, dropped

    def _encode(self) -> list[int]:
        rendered = self._llm.tokenizer.apply_chat_template(self.messages)
        return self._llm.encode(rendered, add_special_tokens=False)


def _answer(conversation: Conversation, text: str, *, as_json: bool, err: Console) -> None:
    """One turn: the reply on standard output, what it cost on standard error or in the JSON line."""
    result, dropped = conversation.say(text, (lambda _: None) if as_json else show)
    if as_json:
        if result is None:
            raise KeyboardInterrupt
        costs = {"result": as_dict(result), "report": Report.of([result]).as_dict()}
        print(json.dumps(conversation.messages[-1] | costs), flush=True)
        return
    print(flush=True)
    if dropped:
        err.print(f"the conversation outgrew the model: {dropped} old messages were dropped", style="yellow")
    err.print("(stopped)" if result is None else _cost(result), style="dim")


def _cost(result: "RequestOutput") -> str:
    """TTFT, how much of the prompt was cached, decode speed."""
    report = Report.of([result])
    parts = [f"{report.cached_tokens} of {report.prompt_tokens} prompt tokens cached"]
    if report.time_to_first_token is not None:
        parts.insert(0, f"TTFT {seconds(report.time_to_first_token)}")
    if report.decode_tokens_per_second is not None:
        parts.append(f"{report.output_tokens} tokens at {report.decode_tokens_per_second:,.0f} tokens/s")
    return " · ".join(parts)


def _read_turn(interactive: bool) -> str | None:
    """The user's next line, or None at the end."""
    if not interactive:
        return sys.stdin.readline() or None
    try:
        return input("> ")
    except EOFError:
        print()
        return None


def _enable_line_editing() -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input() edits lines and keeps a history once it is imported)
