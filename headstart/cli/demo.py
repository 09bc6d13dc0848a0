"""`headstart demo`: a question about a long text, asked cold and then of the cache, and what is found where."""

import json
import random
import time
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from headstart.cli.demo_rag import rag
from headstart.cli.generate import show
from headstart.cli.options import EngineOptions
from headstart.cli.report import Report, seconds
from headstart.cli.stream import follow

if TYPE_CHECKING:
    from headstart.engine.llm import LLM
    from headstart.engine.outputs import RequestOutput

SHARES = (0.125, 0.25, 0.5, 1.0)
"""How much of the text each column of the picture reads."""
DEPTHS = (10, 30, 50, 70, 90)
"""Where in what is read the rows of the picture have their numbers, in percent."""
READING = "Who did the Mole meet by the river?"
_MAX_TOKENS = 40


@dataclass(frozen=True)
class Needle:
    """A secret number, and whose it is."""

    key: str
    number: str

    @property
    def question(self) -> str:
        """What asks for it."""
        return f"What is the secret number for {self.key}?"


@dataclass(frozen=True)
class Hidden:
    """A text with secret numbers in it.

    Attributes:
        text: the whole.
        ends: for each of `SHARES`, how many characters of the text it is.
        needles: by `DEPTHS` and `SHARES`: each column's numbers lie at those depths of its own share.
    """

    text: str
    ends: list[int]
    needles: list[list[Needle]]

    @classmethod
    def put(cls, text: str, seed: int = 0) -> "Hidden":
        """Put a sentence with a number between paragraphs, one for each place of the picture."""
        from headstart.evaluation.tasks.needles import needle, random_number, random_word

        draw = random.Random(f"demo/{seed}")
        keys = list(dict.fromkeys(random_word(draw) for _ in range(10 * len(DEPTHS) * len(SHARES))))
        needles = [[Needle(keys.pop(), random_number(draw)) for _ in SHARES] for _ in DEPTHS]
        paragraphs = text.split("\n\n")
        starts = list(accumulate((len(paragraph) + 2 for paragraph in paragraphs), initial=0))
        cuts = [max(1, bisect_left(starts, share * len(text))) for share in SHARES]
        before: dict[int, list[str]] = defaultdict(list)
        for depth, row in zip(DEPTHS, needles, strict=True):
            for share, cut, hidden in zip(SHARES, cuts, row, strict=True):
                place = bisect_left(starts, share * depth / 100 * len(text))
                before[min(place, cut - 1)].append(needle("numbers", hidden.key, hidden.number))
        pieces = [[*before[i], paragraph] for i, paragraph in enumerate(paragraphs)]
        parts = ["\n\n".join(chain.from_iterable(pieces[:cut])) for cut in cuts]
        return cls(parts[-1], [len(part) for part in parts], needles)


app = typer.Typer(help="See it work.", invoke_without_command=True)
app.command()(rag)


@app.callback()
def demo(
    context: typer.Context,
    words: Annotated[
        int | None, typer.Option(min=500, help="Read only so many words of the text. [default: all, 15 thousand]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the measurements as one JSON object.")] = False,
) -> None:
    """See it work: a long text is read once, and every question after the first is answered from the cache.

    No model is downloaded: one comes with the package. It is small, was trained to find things in long texts, and
    often does not understand what it reads.
    """
    if context.invoked_subcommand is not None:
        return
    from headstart.texts import wild_wood

    out = Console(quiet=as_json, highlight=False, soft_wrap=True)
    began = time.monotonic()
    # There is nobody else to keep waiting, so steps are large; many processors have no bfloat16 units.
    options = EngineOptions(max_num_seqs=len(DEPTHS) * len(SHARES), max_num_batched_tokens=2048, dtype="float32")
    llm = options.load()
    out.print(f"Headstart: the built-in model, ready in {seconds(time.monotonic() - began)}")
    # The first steps of a process pay for thread pools and buffers, whatever they compute.
    _ask(llm, "Hello!", Console(quiet=True))

    book = wild_wood()
    hidden = Hidden.put(_first_words(book.text, words))
    out.print(f"{book.title}, by {book.author}, {book.year}", style="dim", markup=False)
    wanted = hidden.needles[len(DEPTHS) // 2][-1]
    out.print("\n1. A question about a long text, which is read for the first time", style="bold")
    out.print(f"A sentence in the middle of it gives a number. {wanted.question}", markup=False)
    cold = _ask(llm, _about(hidden.text, wanted.question), out)
    out.print("\n2. Another question: what was read is in the cache", style="bold")
    out.print(READING, markup=False)
    warm = _ask(llm, _about(hidden.text, READING), out)
    first, again = Report.of([cold]).time_to_first_token, Report.of([warm]).time_to_first_token
    if first and again:
        out.print(f"first token after {seconds(again)}, not {seconds(first)}: {first / again:.0f} times sooner")
    picture = _show_picture(llm, hidden, out)
    out.print("\nNext", style="bold")
    out.print(
        "  headstart demo rag\n  headstart chat\n  headstart serve DIR    your own checkpoint, for any OpenAI client"
    )
    if as_json:
        answers = {"cold": cold.outputs[0].text, "warm": warm.outputs[0].text}
        reports = {"cold": Report.of([cold]).as_dict(), "warm": Report.of([warm]).as_dict()}
        print(json.dumps({**reports, "answers": answers, "wanted": wanted.number, "picture": picture}))


def _show_picture(llm: "LLM", hidden: Hidden, out: Console) -> dict[str, list[list[bool]] | list[int]]:
    """Ask for all numbers at once, each column of a longer part of the text, and draw which were found."""
    from headstart import SamplingParams

    out.print(f"\n3. {len(DEPTHS) * len(SHARES)} questions at once: which numbers are found where", style="bold")
    # The answers are begun, so that little but the numbers is left to write.
    asked = [
        _prompt(llm, _about(hidden.text[:end], needle.question), f"The secret number for {needle.key} is")
        for row in hidden.needles
        for end, needle in zip(hidden.ends, row, strict=True)
    ]
    with out.status("asking …"):
        results = llm.generate(asked, SamplingParams(max_tokens=10, temperature=0.0, stop=["."]))
    answers = iter(result.outputs[0].text for result in results)
    found = [[needle.number in next(answers) for needle in row] for row in hidden.needles]
    lengths = [len(result.prompt_token_ids) for result in results[: len(SHARES)]]
    out.print("depth" + "".join(f"{length:>8,}" for length in lengths) + "  tokens read")
    for depth, row in zip(DEPTHS, found, strict=True):
        out.print(f"{depth:>4}%" + "".join(f"{'●' if hit else '·':>8}" for hit in row))
    hits = sum(sum(row) for row in found)
    out.print(f"{hits} of {len(results)} found (●). {Report.of(results).line()}", style="cyan")
    return {"lengths": lengths, "depths": list(DEPTHS), "found": found}


def _ask(llm: "LLM", message: str, out: Console) -> "RequestOutput":
    """Stream the answer to one message, and say what it cost."""
    from headstart import SamplingParams

    prompt = _prompt(llm, message)
    waiting = out.status(f"reading {len(prompt['prompt_token_ids']):,} tokens …")
    waiting.start()

    def begin(piece: str) -> None:
        waiting.stop()
        if not out.quiet:
            show(piece)

    try:
        result = follow(llm.stream(prompt, SamplingParams(max_tokens=_MAX_TOKENS, temperature=0.0)), begin)
    finally:
        waiting.stop()
    assert result is not None
    out.print(f"\n{Report.of([result]).line()}", style="cyan")
    return result


def _prompt(llm: "LLM", message: str, begun: str = "") -> dict[str, list[int]]:
    """One message through the chat template, and how its answer begins."""
    text = llm.tokenizer.apply_chat_template([{"role": "user", "content": message}], add_generation_prompt=True)
    return {"prompt_token_ids": llm.encode(text + begun, add_special_tokens=False)}


def _about(text: str, question: str) -> str:
    return f"{text}\n\n{question}"


def _first_words(text: str, count: int | None) -> str:
    """The first paragraphs that hold `count` words; None is all."""
    if count is None:
        return text
    kept: list[str] = []
    for paragraph in text.split("\n\n"):
        if count <= 0:
            break
        kept.append(paragraph)
        count -= len(paragraph.split())
    return "\n\n".join(kept)
