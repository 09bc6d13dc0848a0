"""`headstart methods`: the catalogue of methods, or one card."""

import json
import re
import sys
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from headstart.evaluation.ledger import LedgerEntry, Ratio
    from headstart.methods.registry import MethodCard

_WIDTH = 110


def methods(
    key: Annotated[str | None, typer.Argument(help="One method's key.", show_default=False)] = None,
    stage: Annotated[str | None, typer.Option(help="Only methods of this stage of a model's life.")] = None,
    status: Annotated[str | None, typer.Option(help="Only what is implemented, or what is planned.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the published methods, what their papers claim and what was measured here, or show one card.

    headstart methods

    headstart methods --stage prefill

    headstart methods sarathi-serve
    """
    from headstart.errors import MethodError
    from headstart.methods import registry

    if key is not None:
        if stage or status:
            raise MethodError("--stage and --status choose from the list: leave them out beside a key")
        card = registry.card(key)
        measured = measurements().get(card.key, [])
        if as_json:
            print(json.dumps(as_dict(card, measured)))
        else:
            _print_card(card, measured, Console())
        return
    cards = registry.catalogue(stage=stage, status=status)  # type: ignore[arg-type]  # checked there
    measured_by_key = measurements()
    if as_json:
        print(json.dumps([as_dict(card, measured_by_key.get(card.key, [])) for card in cards]))
        return
    console = Console()
    (_print_grouped if console.is_terminal else _print_lines)(cards, measured_by_key, console)
    console.print(f"\n{_counts(cards)}", style="dim", highlight=False, soft_wrap=True)


def measurements() -> "dict[str, list[LedgerEntry]]":
    """What the ledger of this checkout holds about each method, by key, the newest first.

    Files that cannot be read are left out, with a warning on standard error.
    """
    from headstart.evaluation import ledger

    directory = ledger.default_directory()
    entries, refused = ledger.scan(directory) if directory.is_dir() else ([], [])
    for error in refused:
        print(f"headstart: left out: {error}", file=sys.stderr)
    found: dict[str, list[LedgerEntry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.created, reverse=True):
        if entry.method is not None:
            found.setdefault(entry.method, []).append(entry)
    return found


def as_dict(card: "MethodCard", measured: "list[LedgerEntry]") -> dict[str, Any]:
    """A card with its ledger entries, for JSON."""
    return {
        "key": card.key,
        "stage": card.stage,
        "kind": card.kind,
        "status": card.status,
        "baseline": card.paper is None,
        "slots": list(card.slots),
        "exact": card.exact,
        "chunking": card.chunking,
        "needs": list(card.needs),
        "min_context": card.min_context,
        "summary": card.summary,
        "when_not": card.when_not,
        "composes": card.composes,
        "conflicts": card.conflicts,
        "paper": asdict(card.paper) if card.paper else None,
        "claim": asdict(card.claim) if card.claim else None,
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
        "measurements": [entry.model_dump(mode="json") for entry in measured],
        "commands": _commands(card),
    }


def _plain(value: Any) -> Any:
    """A default as JSON can hold it."""
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _print_grouped(cards: "list[MethodCard]", measured: "dict[str, list[LedgerEntry]]", console: Console) -> None:
    """For a terminal: a table per stage, its cells on several lines."""
    from headstart.methods.registry import STAGES

    for stage, members in groupby(cards, key=lambda card: card.stage):
        about = f": {STAGES[stage]}" if stage in STAGES else ""
        console.print(f"\n[bold]{escape(stage)}[/]{escape(about)}", highlight=False)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), width=min(console.width, _WIDTH))
        table.add_column("method", no_wrap=True, min_width=21)
        table.add_column("fills, traits", width=25)
        table.add_column("the paper claims", ratio=1)
        table.add_column("measured here", width=16)
        for card in members:
            status = "green" if card.implementation else "dim"
            table.add_row(
                f"[bold]{escape(card.key)}[/]\n[{status}]{_status(card)}[/]",
                "\n".join(filter(None, (escape(_slots(card)), f"[dim]{escape(_traits(card))}[/]"))),
                escape(card.claim.text if card.claim else "—"),
                escape(_newest(measured.get(card.key, []))),
            )
        console.print(table, highlight=False)


def _print_lines(cards: "list[MethodCard]", measured: "dict[str, list[LedgerEntry]]", console: Console) -> None:
    """For a pipe: every method on one line."""
    rows = [("key", "stage", "status", "fills", "traits", "the paper claims", "measured here")]
    for card in cards:
        claim = card.claim.text if card.claim else "—"
        shown = (_slots(card) or "—", _traits(card), claim, _newest(measured.get(card.key, [])))
        rows.append((card.key, card.stage, _status(card), *shown))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        console.print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)


def _counts(cards: "list[MethodCard]") -> str:
    """How many methods are listed, by status; baselines that no paper proposes apart."""
    of_papers = [card for card in cards if card.paper]
    implemented = sum(card.status == "implemented" for card in of_papers)
    text = f"{len(of_papers)} published methods: {implemented} implemented, {len(of_papers) - implemented} planned"
    baselines = len(cards) - len(of_papers)
    if baselines:
        text += f"; {baselines} baseline{'s' if baselines > 1 else ''}"
    return f"{text} · one card: headstart methods KEY"


def _status(card: "MethodCard") -> str:
    return card.status if card.paper else f"{card.status} (baseline)"


def _slots(card: "MethodCard") -> str:
    """The slots, with the two halves of attention or selection as one."""
    shown = list(card.slots)
    for seam in ("attention", "selector"):
        halves = [f"{seam}.prefill", f"{seam}.decode"]
        if set(halves) <= set(shown):
            shown[shown.index(halves[0])] = seam
            shown.remove(halves[1])
    return ", ".join(shown)


def _traits(card: "MethodCard") -> str:
    """The traits in a few words."""
    if card.kind != "inference":
        traits = [card.kind]
    else:
        chunking = {"per_chunk": "by chunk", "whole": "whole prompt"}.get(card.chunking or "")
        context = f"from {card.min_context:,} tokens" if card.min_context else None
        traits = ["exact" if card.exact else "approximate", *filter(None, (chunking, context))]
    return ", ".join([*traits, "has needs"] if card.needs else traits)


def _newest(measured: "list[LedgerEntry]") -> str:
    """The newest measurement in a few words: its first ratio, else its first row."""
    entry = measured[0] if measured else None
    if entry is not None and entry.ratios:
        text = f"{entry.ratios[0].name} {entry.ratios[0].value:.3g}x"
    elif entry is not None and entry.rows:
        text = f"{entry.rows[0].name} {entry.rows[0].median:.3g} {entry.rows[0].unit}"
    else:
        return "—"
    return f"{text} (stale)" if entry.stale else text


def _print_card(card: "MethodCard", measured: "list[LedgerEntry]", console: Console) -> None:
    title = f"[bold]{escape(card.key)}[/] · {escape(card.stage)} · {card.kind} · {_status(card)}"
    console.print(title, highlight=False)
    if card.paper:
        console.print(card.paper.title, markup=False, highlight=False, style="italic")
        link = f"https://arxiv.org/abs/{card.paper.arxiv}" if card.paper.arxiv else ""
        where = " · ".join(filter(None, (card.paper.venue, link)))
        console.print(where, markup=False, highlight=False, style="dim", soft_wrap=True)
    grid = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    grid.width = min(console.width, _WIDTH)
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(ratio=1)
    for label, text in _paragraphs(card, measured):
        grid.add_row("", "")
        grid.add_row(label, escape(text))
    console.print(grid, highlight=False)


def _paragraphs(card: "MethodCard", measured: "list[LedgerEntry]") -> list[tuple[str, str]]:
    """The parts of a card that have something to say, each with its label."""
    claim, commands = card.claim, "\n".join(_commands(card))
    options = "\n".join(
        f"{o.name} ({o.type_name}, {'required' if o.required else f'default {o.default}'}): {o.help}"
        for o in card.options
    )
    parts = [
        ("what it does", card.summary),
        ("when not", card.when_not),
        ("fills", ", ".join(card.slots)),
        ("traits", _trait_lines(card)),
        ("needs", "\n".join(card.needs)),
        ("options", options if card.implementation else "they come with its code"),
        ("goes with", card.composes),
        ("conflicts", card.conflicts),
        ("paper claims", f"{claim.text}\n{claim.setting}\nsource: {claim.source}" if claim else ""),
        ("measured here", "\n\n".join(map(_measured, measured)) or "nothing yet"),
        ("commands", commands if card.implementation else f"planned: there is no code yet; when there is:\n{commands}"),
    ]
    return [(label, text) for label, text in parts if text]


def _trait_lines(card: "MethodCard") -> str:
    """The traits of inference, in sentences."""
    if card.kind != "inference":
        return ""
    chunking = {
        "any": "any split of a prompt gives the same result",
        "per_chunk": "the result depends on how a prompt is split",
        "whole": "the prompt is read whole",
    }
    lines = ["exact: the same distribution as the plain model" if card.exact else "approximate"]
    lines += [chunking[card.chunking]] if card.chunking else []
    lines += [f"from {card.min_context:,} tokens of context; below, the default runs"] if card.min_context else []
    return "\n".join(lines)


def _measured(entry: "LedgerEntry") -> str:
    """One ledger entry: where and when, what came out, and the command that measures again."""
    machine = ", ".join(entry.machine.accelerators) or entry.machine.cpu
    commit = f"commit {entry.commit[:9]}{' with changes' if entry.dirty else ''}" if entry.commit else "no commit"
    lines = [f"{entry.created:%Y-%m-%d} on {machine}, {entry.machine.cores} cores, {commit}"]
    if entry.stale:
        lines.append(f"stale: measured before changes to {', '.join(entry.stale)}")
    lines += [_ratio(ratio) for ratio in entry.ratios] or [
        f"{row.name}, {row.side}: {row.median:.3g} {row.unit} ({row.spread[0]:.3g} to {row.spread[1]:.3g})"
        for row in entry.rows
    ]
    lines += [
        f"{turn.name}: {turn.side} is better than {turn.against} "
        + (f"from {turn.length:,} tokens" if turn.length is not None else f"nowhere up to {turn.lengths[-1]:,} tokens")
        for turn in entry.crossovers
    ]
    return "\n".join([*lines, f"again: {entry.command}"])


def _ratio(ratio: "Ratio") -> str:
    spread = f"{ratio.spread[0]:.3g} to {ratio.spread[1]:.3g}"
    return f"{ratio.name}: {ratio.side} is {ratio.value:.3g} times better than {ratio.against} ({spread})"


def _commands(card: "MethodCard") -> list[str]:
    """How one uses the method and measures it."""
    bench = f"headstart bench method {card.key}"
    return {
        "inference": [f"headstart generate --use {_use(card)}", bench],
        "training": [f"headstart train RECIPE --use {_use(card)}", bench],
        "analysis": list(getattr(card.implementation, "commands", ())) or [bench],
    }[card.kind]


def _use(card: "MethodCard") -> str:
    """How one may write the method: with every required option, or with one whose default is a word as an example."""
    words = [o for o in card.options if re.fullmatch(r"[\w.+-]+", str(o.default))]
    shown = [o for o in card.options if o.required] or words[:1]
    options = ",".join(f"{o.name}={o.name.upper() if o.required else o.default}" for o in shown)
    return f"{card.key}:{options}" if options else card.key
