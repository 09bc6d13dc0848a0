"""`headstart generate`: continue prompts from the command line, files or standard input."""

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from headstart.cli.options import EngineOptions, SamplingOptions, with_options
from headstart.cli.report import Report
from headstart.cli.stream import follow
from headstart.errors import HeadstartError

if TYPE_CHECKING:
    from headstart.engine.outputs import CompletionOutput, Logprob, RequestOutput


@with_options
def generate(
    engine: EngineOptions,
    sampling: SamplingOptions,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help="Texts to continue; `-` reads one from standard input.", show_default=False),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", help="File whose text is a prompt; may be repeated.", show_default=False),
    ] = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="Each line of a file or of standard input is a prompt of its own.")
    ] = False,
    n: Annotated[int, typer.Option("--n", "-n", help="Outputs per prompt.")] = 1,
    logprobs: Annotated[
        int | None,
        typer.Option(help="With --json: log-probabilities of each token and of this many alternatives."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object: results and report.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No report.")] = False,
) -> None:
    """Continue a text.

    One prompt streams to the terminal as it is generated; several run together. The text goes to standard
    output, the report to standard error.

        headstart generate "Once upon a time"
        headstart generate --file letter.txt --max-tokens 200 --temperature 0
        cat questions.txt | headstart generate --lines --json
    """
    texts = read_prompts(prompts or [], file or [], lines=lines)
    sampling.check()
    llm = engine.load()
    params = sampling.params(llm, n=n, logprobs=logprobs)
    if as_json:
        results = llm.generate(texts, params)
        report = Report.of(results).as_dict()
        print(json.dumps({"results": [as_dict(result) for result in results], "report": report}))
        return
    if len(texts) == 1 and n == 1:
        whole = follow(llm.stream(texts[0], params), show)
        print()
        results = [whole] if whole else []
    else:
        results = llm.generate(texts, params)
        for result in results:
            _print_outputs(result)
    if not quiet:
        Console(stderr=True).print(Report.of(results).line(), style="dim", highlight=False, soft_wrap=True)


def read_prompts(arguments: list[str], files: list[Path], *, lines: bool) -> list[str]:
    """The prompts in the order given: arguments, then files; standard input where it is asked for, or alone.

    Raises:
        HeadstartError: a file that cannot be read as text, or no prompt at all.
    """
    texts: list[str] = []
    for argument in arguments:
        texts += _split(_read_stdin(), lines) if argument == "-" else [argument]
    for path in files:
        texts += _split(_read_stdin() if str(path) == "-" else _read_file(path), lines)
    if not arguments and not files and not sys.stdin.isatty():
        texts = _split(_read_stdin(), lines)
    if not texts:
        raise HeadstartError(
            'there is no prompt: give one as an argument (headstart generate "Once upon a time"), '
            "with --file, or on standard input"
        )
    return texts


def as_dict(result: "RequestOutput") -> dict[str, Any]:
    """A finished request for JSON."""
    return {
        "prompt": result.prompt,
        "prompt_tokens": len(result.prompt_token_ids),
        "cached_tokens": result.num_cached_tokens,
        "time_to_first_token": result.metrics.time_to_first_token,
        "exact": result.exact,
        "outputs": [_output_as_dict(output) for output in result.outputs],
    }


def _output_as_dict(output: "CompletionOutput") -> dict[str, Any]:
    found: dict[str, Any] = {
        "index": output.index,
        "text": output.text,
        "token_ids": list(output.token_ids),
        "finish_reason": output.finish_reason,
        "stop_reason": output.stop_reason,
    }
    if output.logprobs is not None:
        found["logprobs"] = [_logprobs_as_list(at) for at in output.logprobs]
    return found


def _logprobs_as_list(at: "dict[int, Logprob]") -> list[dict[str, Any]]:
    """One position's tokens, the likeliest first."""
    return [
        {"token_id": token_id, "token": token.decoded_token, "logprob": token.logprob, "rank": token.rank}
        for token_id, token in sorted(at.items(), key=lambda item: item[1].rank)
    ]


def show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _print_outputs(result: "RequestOutput") -> None:
    """The outputs of one of several prompts, under a line that says which."""
    head = (result.prompt or "").strip().replace("\n", " ")
    head = head if len(head) <= 60 else head[:59] + "…"
    for output in result.outputs:
        number = f" [{output.index + 1}/{len(result.outputs)}]" if len(result.outputs) > 1 else ""
        print(f"==> {head}{number}\n{output.text}\n")


def _read_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise HeadstartError("standard input is not UTF-8 text: prompts are text") from None


def _read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise HeadstartError(f"{path} is not UTF-8 text: prompts are text") from None
    except OSError as error:
        raise HeadstartError(f"cannot read the prompt file {path}: {error.strerror}") from None


def _split(text: str, lines: bool) -> list[str]:
    """The prompts in a text: its lines that are not empty, or all of it if it is not empty."""
    if lines:
        return [line for line in re.split(r"\r?\n", text) if line.strip()]
    # A file's last line break is the file's, not the prompt's.
    text = text.removesuffix("\n")
    return [text] if text else []
