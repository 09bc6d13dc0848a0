"""`headstart methods`: the catalogue of methods, or one card."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from headstart.methods.registry import MethodCard


def methods(
    key: Annotated[str | None, typer.Argument(help="One method's key.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the methods that --use takes, or show one with its options.

    headstart methods

    headstart methods sarathi-serve
    """
    from headstart.methods import registry

    if key is not None:
        card = registry.card(key)
        if as_json:
            print(json.dumps(_as_dict(card)))
        else:
            _print_card(card, Console())
        return
    cards = registry.catalogue()
    if as_json:
        print(json.dumps([_as_dict(card) for card in cards]))
    else:
        _print_table(cards, Console())


def _as_dict(card: "MethodCard") -> dict[str, Any]:
    """A card for JSON."""
    return {
        "key": card.key,
        "stage": card.stage,
        "slots": list(card.slots),
        "exact": card.exact,
        "chunking": card.chunking,
        "needs": list(card.needs),
        "min_context": card.min_context,
        "summary": card.summary,
        "paper": {"title": card.paper.title, "arxiv": card.paper.arxiv} if card.paper else None,
        "options": [
            {
                "name": o.name,
                "type": o.type_name,
                "required": o.required,
                "default": None if o.required else _plain(o.default),
                "help": o.help,
            }
            for o in card.options
        ],
    }


def _plain(value: Any) -> Any:
    """A default as JSON can hold it."""
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _print_table(cards: list["MethodCard"], console: Console) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("key", "stage", "fills", "exact", "what it does"):
        table.add_column(title, no_wrap=title == "key")
    for card in cards:
        exact = "yes" if card.exact else "no"
        table.add_row(f"[bold]{escape(card.key)}[/]", card.stage, ", ".join(card.slots), exact, escape(card.summary))
    console.print(table)
    console.print("\none card: headstart methods KEY · use one: headstart generate --use KEY", style="dim")


def _print_card(card: "MethodCard", console: Console) -> None:
    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False)

    say(card.key, "bold")
    say(card.summary)
    say("")
    if card.paper:
        link = f" (https://arxiv.org/abs/{card.paper.arxiv})" if card.paper.arxiv else ""
        say(f"paper     {card.paper.title}{link}")
    say(f"stage     {card.stage}")
    say(f"fills     {', '.join(card.slots)}")
    say(f"exact     {'yes: the same distribution as the plain model' if card.exact else 'no: approximate'}")
    say(f"chunking  {_CHUNKING[card.chunking]}")
    if card.min_context:
        say(f"context   from {card.min_context} tokens; below, the default runs")
    for need in card.needs:
        say(f"needs     {need}")
    if card.options:
        say("options")
        width = max(len(option.name) for option in card.options)
        for o in card.options:
            default = "required" if o.required else f"default {o.default}"
            say(f"  {o.name:<{width}}  {o.help} [{o.type_name}, {default}]")
    say(f"\nuse it: --use {_use(card)}", "dim")


def _use(card: "MethodCard") -> str:
    """How one may write the method: with every required option, or with the first as an example."""
    shown = [o for o in card.options if o.required] or card.options[:1]
    options = ",".join(f"{o.name}={o.name.upper() if o.required else o.default}" for o in shown)
    return f"{card.key}:{options}" if options else card.key


_CHUNKING = {
    "any": "any split of a prompt gives the same result",
    "per_chunk": "the result depends on how a prompt is split",
    "whole": "the prompt is read whole",
}
