"""`headstart demo`: what the engine does, shown with the built-in model in under a minute."""

import json
import time
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from headstart.cli.generate import show
from headstart.cli.options import EngineOptions
from headstart.cli.report import Report, seconds
from headstart.cli.stream import follow

if TYPE_CHECKING:
    from headstart.engine.llm import LLM
    from headstart.engine.params import SamplingParams

ENDINGS = (
    "\n\nAs he sat on the grass and looked across the river, he saw",
    "\n\nThen a little boat came round the bend, and in the boat",
)
OPENINGS = (
    "Once upon a time there was a king who",
    "The little girl opened the door, and",
    "'Where are you going?' said the fox.",
    "It was a dark night, and the wind",
    "There was once a poor woman who lived",
    "The old wizard looked at the boy and said",
    "On the first day of the summer holidays",
    "'Oh dear!' cried Dorothy.",
    "The children ran down to the sea, where",
    "Mother was very tired that evening.",
    "In the middle of the wood stood a house",
    "The dragon was asleep when",
    "'I am not afraid,' said Anne.",
    "The snow had fallen all night, and",
    "A ship came into the harbour, and",
    "The Princess would not eat her supper.",
)


def passage() -> str:
    """The long text of the demo: the opening of a book of 1908 that the model has not read."""
    text = files("headstart.cli").joinpath("data/river-bank.txt").read_text(encoding="utf-8")
    return text.removesuffix("\n")


def demo(
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate in each step.")] = 48,
    as_json: Annotated[bool, typer.Option("--json", help="Print the measurements as one JSON object.")] = False,
) -> None:
    """See it work: a long text read cold, read again from the cache, and many requests at once.

    No model is downloaded: one comes with the package. It is tiny and knows only old children's books.
    """
    from headstart import SamplingParams

    params = SamplingParams(max_tokens=max_tokens, temperature=0.7, top_p=0.95, seed=1, ignore_eos=True)
    out = Console(quiet=as_json, highlight=False, soft_wrap=True)
    began = time.monotonic()
    llm = EngineOptions(max_num_seqs=len(OPENINGS)).load()
    out.print(f"Headstart: the built-in story model, ready in {seconds(time.monotonic() - began)}")
    # The first steps of a process pay for thread pools and buffers, whatever they compute.
    llm.generate(["Once", "There was"], SamplingParams(max_tokens=4, ignore_eos=True))

    cold, warm = _show_prefix_cache(llm, params, out)
    batch = _show_batch(llm, params, out)
    out.print("\nNext", style="bold")
    out.print("  headstart chat\n  headstart serve DIR    your own checkpoint, for any OpenAI client")
    if as_json:
        print(json.dumps({"cold": cold.as_dict(), "warm": warm.as_dict(), "batch": batch}))


def _show_prefix_cache(llm: "LLM", params: "SamplingParams", out: Console) -> tuple[Report, Report]:
    """The same long text with two endings: read in full, then found in the cache."""
    text = passage()
    out.print("\n1. A long text, read for the first time", style="bold")
    out.print(f"{text[:70]} …", style="dim", markup=False)
    cold = _continue(llm, text, ENDINGS[0], params, out)
    out.print("\n2. The same text with another ending: what was read is in the cache", style="bold")
    warm = _continue(llm, text, ENDINGS[1], params, out)
    first, again = cold.time_to_first_token, warm.time_to_first_token
    if first and again:
        out.print(
            f"first token after {seconds(again)}, not {seconds(first)}: {first / again:.1f} times sooner",
            style="green",
        )
    return cold, warm


def _continue(llm: "LLM", text: str, ending: str, params: "SamplingParams", out: Console) -> Report:
    """Stream what follows `text` and `ending`, and say what it cost."""
    out.print(f"… {ending.strip()}", end="", style="dim", markup=False)
    result = follow(llm.stream(text + ending, params), (lambda _: None) if out.quiet else show)
    report = Report.of([result] if result else [])
    out.print(f"\n{report.line()}", style="cyan")
    return report


def _show_batch(llm: "LLM", params: "SamplingParams", out: Console) -> dict[str, Any]:
    """The same requests one after another, then all together."""
    out.print(f"\n3. {len(OPENINGS)} requests, one by one and then together", style="bold")
    singles = [result for opening in OPENINGS for result in llm.generate([opening], params)]
    together = llm.generate(list(OPENINGS), params)
    for opening, result in list(zip(OPENINGS, together, strict=True))[:3]:
        out.print("  " + " ".join((opening + result.outputs[0].text).split())[:110] + " …", markup=False)
    one, many = (Report.of(results).output_tokens_per_second for results in (singles, together))
    if one and many:
        out.print(
            f"{one:,.0f} tokens/s one by one, {many:,.0f} together: {many / one:.1f} times as many",
            style="green",
        )
    return {
        "requests": len(OPENINGS),
        "one_by_one_tokens_per_second": one,
        "together_tokens_per_second": many,
    }
