"""`headstart demo rag`: questions over documents that recur, answered in four ways side by side."""

import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from headstart.cli.report import seconds
from headstart.errors import HeadstartError

if TYPE_CHECKING:
    from headstart.engine.llm import LLM

WAYS: dict[str, dict[str, Any]] = {
    "full prefill": {"enable_prefix_caching": False},
    "prefix cache": {},
    "ape": {"use": ["ape"]},
    "cacheblend": {"use": ["cacheblend"]},
}
"""By name, the settings of each engine."""
_MAX_TOKENS = 24
_POOL = 9
_QUESTIONS = 4


@dataclass(frozen=True)
class Case:
    """A question with its prompt.

    Attributes:
        question: as people read it.
        prompt: as the engine takes it, the documents as chunks.
        sought: what the answer should hold, where that is known.
    """

    question: str
    prompt: dict[str, Any]
    sought: tuple[str, ...] = ()


def rag(
    folder: Annotated[
        Path | None, typer.Argument(help="Text files to ask about. [default: a story that comes with the package]")
    ] = None,
    question: Annotated[
        list[str] | None, typer.Option("--question", "-q", help="What to ask; may be repeated.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Checkpoint. [default: the built-in model]")
    ] = None,
    documents: Annotated[int, typer.Option(min=1, help="Documents in each prompt.")] = 4,
    tokens: Annotated[int, typer.Option(min=16, help="Tokens of a document, about.")] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="Print the measurements as one JSON object.")] = False,
) -> None:
    """Ask about documents that recur: full prefill, prefix cache, APE and CacheBlend, with times and answers.

    Each question finds its documents, as retrieval does, so that they stand in another order every time. All four
    engines have read every document once before. The built-in model is small: it finds numbers in long texts, and
    often does not understand what it reads.

        headstart demo rag
        headstart demo rag manuals/ -q "How is the filter changed?" -q "How long does the filter last?"
    """
    out = Console(quiet=as_json, highlight=False, soft_wrap=True)
    if folder is not None and not question:
        raise HeadstartError("say what to ask about these documents: --question TEXT, several for a better picture")
    told: list[dict[str, Any]] = []
    cases: list[Case] = []
    for name, settings in WAYS.items():
        llm = _load(model, settings, documents, tokens)
        with out.status(f"{name}: reading the documents …"):
            before, cases = _cases(llm, folder, question or [], documents, tokens)
            read = sum(_ask(llm, prompt, 1)[0] for prompt in before)
        answers = []
        for case in cases:
            with out.status(f"{name}: {case.question}"):
                first, text = _ask(llm, case.prompt, _MAX_TOKENS)
            answers.append({"ttft": first, "answer": text, "right": all(each in text for each in case.sought)})
        told.append({"way": name, "read": read, "answers": answers, "exact": llm.engine.exact})
    lengths = [len(case.prompt["prompt_token_ids"]) for case in cases]
    if as_json:
        print(json.dumps({"questions": [case.question for case in cases], "prompt_tokens": lengths, "ways": told}))
        return
    _show(cases, told, out, documents)


def _load(model: str | None, settings: dict[str, Any], documents: int, tokens: int) -> "LLM":
    from headstart import LLM

    # There is nobody else to keep waiting, so that steps are large; many processors have no bfloat16 units.
    room = 4 * documents * tokens + 1024
    return LLM(model, dtype="float32", max_num_seqs=1, max_num_batched_tokens=room, max_model_len=room, **settings)


def _cases(
    llm: "LLM", folder: Path | None, questions: Sequence[str], documents: int, tokens: int
) -> tuple[list[dict[str, Any]], list[Case]]:
    """Prompts in which every document stands once, and the questions."""
    if folder is not None:
        return _of_folder(llm, folder, questions, documents, tokens)
    from headstart.evaluation.shelf import Shelf

    shelf = Shelf.of(llm, _POOL, tokens)
    asked = [shelf.ask(index, documents) for index in range(_QUESTIONS)]
    return shelf.every(documents), [Case(each.question, shelf.prompt(each), each.answers) for each in asked]


def _of_folder(
    llm: "LLM", folder: Path, questions: Sequence[str], documents: int, tokens: int
) -> tuple[list[dict[str, Any]], list[Case]]:
    from headstart.evaluation.shelf import frame, joined
    from headstart.library import read_documents, split

    def count(text: str) -> int:
        return len(llm.encode(text, add_special_tokens=False))

    texts = [chunk for _, text in read_documents([folder]) for chunk in split(text, count, tokens)]
    if not texts:
        raise HeadstartError(f"the documents in {folder} have no text")
    ids = [llm.encode(f"{text}\n\n", add_special_tokens=False) for text in texts]
    head, end = frame(llm)
    chosen = [nearest(question, texts, documents) for question in questions]
    wanted = sorted({at for each in chosen for at in each})
    before = [joined(head, [ids[at]], ids[at][:1]) for at in wanted]
    cases = []
    for question, order in zip(questions, chosen, strict=True):
        tail = llm.encode(f"{question}{end}", add_special_tokens=False)
        cases.append(Case(question, joined(head, [ids[at] for at in order], tail)))
    return before, cases


def nearest(question: str, texts: Sequence[str], count: int) -> list[int]:
    """The texts that share the rarest words with a question, the best first."""
    bags = [Counter(_words(text)) for text in texts]
    found = Counter(word for bag in bags for word in bag)

    def score(at: int) -> float:
        bag = bags[at]
        shared = sum(math.log(1 + len(texts) / found[word]) for word in set(_words(question)) & bag.keys())
        return shared / math.sqrt(1 + bag.total())

    return sorted(range(len(texts)), key=lambda at: -score(at))[:count]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _ask(llm: "LLM", prompt: dict[str, Any], tokens: int) -> tuple[float, str]:
    """Seconds to the first token, and the answer."""
    from headstart import SamplingParams

    (output,) = llm.generate(prompt, SamplingParams(max_tokens=tokens, temperature=0.0))
    return output.metrics.time_to_first_token or 0.0, output.outputs[0].text.strip()


def _show(cases: Sequence[Case], told: Sequence[dict[str, Any]], out: Console, documents: int) -> None:
    """Answers by question, then the medians."""
    from rich.table import Table

    for number, case in enumerate(cases):
        length = len(case.prompt["prompt_token_ids"])
        out.print(f"\n{number + 1}. {case.question}", style="bold", markup=False)
        sought = f", sought: {', '.join(case.sought)}" if case.sought else ""
        out.print(f"{documents} documents, {length:,} tokens{sought}", style="dim", markup=False)
        for way in told:
            answer = way["answers"][number]
            sign = ("●" if answer["right"] else "·") if case.sought else " "
            first_line = answer["answer"].split("\n")[0]
            out.print(f"  {way['way']:<13} {seconds(answer['ttft']):>8}  {sign} {first_line}", markup=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("", "first token (median)", "against full prefill", "right"):
        table.add_column(title, justify="left" if not title else "right")
    times = [statistics.median(each["ttft"] for each in way["answers"]) for way in told]
    known = any(case.sought for case in cases)
    for way, first in zip(told, times, strict=True):
        right = f"{sum(each['right'] for each in way['answers'])} of {len(cases)}" if known else "not known"
        table.add_row(way["way"], seconds(first), f"{times[0] / first:.1f} times sooner" if first else "", right)
    out.print()
    out.print(table)
    out.print(
        "The first two are exact, ape and cacheblend are not. To measure: headstart bench method cacheblend",
        style="dim",
    )
