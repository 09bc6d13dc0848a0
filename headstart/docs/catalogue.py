"""The catalogue of methods as pages: an index, and one page for each card with what the ledger holds of it."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from headstart.cli.methods import as_dict
from headstart.docs.markdown import escape, fenced, prose, table
from headstart.docs.measurements import entry_section, shortest
from headstart.evaluation.ledger import LedgerEntry
from headstart.evaluation.method_bench_spec import bench_of
from headstart.methods import registry
from headstart.methods.registry import STAGES, MethodCard

FOLDER = "catalogue"
_CHUNKING = {
    "any": "any split of a prompt gives the same result",
    "per_chunk": "the result depends on how a prompt is split",
    "whole": "a prompt is read whole",
}

Measured = Mapping[str, Sequence[LedgerEntry]]
"""The ledger's entries by the key of the method that they are about."""


def page_name(card: MethodCard) -> str:
    """Where the page of a method lies, from the documentation's root."""
    return f"{FOLDER}/{card.key}.md"


def index_page(cards: Sequence[MethodCard], measured: Measured) -> str:
    """All methods by stage, with the paper's claim and the newest measurement."""
    papers = [card for card in cards if card.paper]
    coded = sum(card.status == "implemented" for card in papers)
    parts = [
        "# Methods\n",
        f"{len(papers)} published methods: {coded} implemented, {len(papers) - coded} planned. What is planned has a "
        "card, so that you can see what it will do, and no code yet. Beside them stand the baselines that no paper "
        "proposes.\n",
        "What a paper claims was shown on other models and machines. What was measured here comes from the "
        "[ledger](../measurements.md); [how to read it](../measure.md).\n",
    ]
    for stage, members in groupby(cards, key=lambda card: card.stage):
        parts.append(f"## {stage}\n\n{STAGES.get(stage, stage).capitalize()}.\n")
        parts.append(methods_table(members, measured))
    return "\n".join(parts)


def methods_table(cards: Iterable[MethodCard], measured: Measured, folder: str = "") -> str:
    """Methods with status, claim and newest measurement.

    Args:
        cards: in the order to be shown.
        measured: what the ledger holds.
        folder: from the page to the catalogue, such as `catalogue/`.
    """
    rows = [
        [
            f"[`{card.key}`]({folder}{card.key}.md)",
            status(card),
            prose(card.summary.partition(". ")[0].rstrip(".") + "."),
            prose(card.claim.text) if card.claim else "none: a baseline",
            shortest(measured[card.key][0]) if measured.get(card.key) else "not measured yet",
        ]
        for card in cards
    ]
    return table(["method", "status", "what it does", "the paper claims", "measured here"], rows)


def status(card: MethodCard) -> str:
    """Whether it can be used."""
    text = "**implemented**" if card.status == "implemented" else "planned"
    return text if card.paper else f"{text}, baseline"


def method_page(card: MethodCard, measured: Sequence[LedgerEntry], keys: Iterable[str]) -> str:
    """One method: what it does, when not to use it, claim, measurement and commands.

    Args:
        card: its card.
        measured: what the ledger holds about it, the newest first.
        keys: of all methods; where one stands in a text, it leads to its page.
    """
    known = set(keys) - {card.key}

    def text(words: str) -> str:
        return prose(words, lambda word: f"{word}.md" if word in known else None)

    sections = {
        "What it does": text(card.summary),
        "When not to use it": text(card.when_not),
        "What it needs": _bullets(map(text, card.needs)),
        "Traits": _traits(card),
        "Options": _options(card),
        "Goes with": text(card.composes),
        "Conflicts with": text(card.conflicts),
        "The paper's claim": _claim(card),
        "Measured here": _measured(card, measured),
        "Commands": _commands(card),
    }
    parts = [_head(card), *(f"## {title}\n\n{body}" for title, body in sections.items() if body)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _head(card: MethodCard) -> str:
    lines = [f"# {card.key}"]
    if card.paper:
        where = [card.paper.venue, f"[arXiv {card.paper.arxiv}](https://arxiv.org/abs/{card.paper.arxiv})"]
        shown = where if card.paper.arxiv else where[:1]
        lines.append(f"*{escape(card.paper.title)}*  \n{', '.join(filter(None, shown))}")
    lines.append(f"Stage: [{card.stage}](index.md#{card.stage}). Status: {status(card)}.")
    if card.status == "planned":
        lines.append('!!! note "Planned"\n\n    There is no code yet: this is the card of what will be built.')
    return "\n\n".join(lines)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _traits(card: MethodCard) -> str:
    kinds = {
        "inference": "works while a model answers",
        "training": "works on a model, its data or its training",
        "analysis": "only measures",
    }
    lines = [f"It {kinds[card.kind]}."]
    if card.slots:
        lines.append(f"It fills {', '.join(f'`{slot}`' for slot in card.slots)}.")
    if card.exact is not None:
        lines.append(
            "Exact: the model's distribution stays as it is."
            if card.exact
            else "Approximate: it changes the model's distribution."
        )
    if card.chunking:
        lines.append(f"Chunking: {_CHUNKING[card.chunking]}.")
    if card.min_context:
        lines.append(f"It runs from {card.min_context:,} tokens of context; below, the default does.")
    return _bullets(lines)


def _options(card: MethodCard) -> str:
    lines = []
    for option in card.options:
        default = "required" if option.required else f"default `{option.default!r}`"
        lines.append(f"`{option.name}` ({prose(option.type_name)}, {default}): {prose(option.help)}")
    return _bullets(lines)


def _claim(card: MethodCard) -> str:
    if card.claim is None:
        return "None: no paper proposes it." if card.paper is None else ""
    claim = card.claim
    return f"> {prose(claim.text)}\n\nShown with: {prose(claim.setting)}. Source: {prose(claim.source)}."


def _measured(card: MethodCard, measured: Sequence[LedgerEntry]) -> str:
    if not measured:
        return "Not measured yet" + (": there is no code." if card.status == "planned" else ".")
    headline = bench_of(card).headline if card.status == "implemented" else ()
    return "\n".join(entry_section(entry, headline) for entry in measured)


def _commands(card: MethodCard) -> str:
    commands: list[str] = as_dict(card, [])["commands"]
    when = "" if card.status == "implemented" else "When it has code:\n\n"
    return when + fenced("\n".join([f"headstart methods {card.key}", *commands]), "sh")


def cards_of(keys: Iterable[str]) -> list[MethodCard]:
    """The cards of these methods in this order.

    Raises:
        MethodError: no such method; the nearest is named.
    """
    return [registry.card(key) for key in keys]
