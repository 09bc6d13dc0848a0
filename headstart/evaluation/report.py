"""A measurement as one HTML file that needs nothing else: pictures, tables, notes, and how to measure again."""

import base64
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from headstart.evaluation.ledger import LedgerEntry, write_whole
from headstart.evaluation.plots import Picture
from headstart.evaluation.report_tables import findings, tables

_MEDIA = {".svg": "image/svg+xml", ".png": "image/png"}


def write_report(
    path: Path,
    entry: LedgerEntry,
    pictures: Sequence[Picture] = (),
    *,
    title: str,
    headline: Sequence[str] = (),
    claim: Any = None,
) -> None:
    """Write the page; nothing in it is fetched from elsewhere.

    Args:
        path: of the file.
        entry: what was measured.
        pictures: drawn from it.
        title: of the page.
        headline: the metrics that stand first.
        claim: the paper's, with `text`, `setting` and `source`; None where there is none.

    Raises:
        LedgerError: the file cannot be written.
    """
    template = files("headstart.evaluation").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    # Autoescape: names of models and methods come from users and files.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(
        title=title,
        subtitle=" · ".join(filter(None, (entry.model, _where(entry), f"{entry.created:%Y-%m-%d %H:%M} UTC"))),
        entry=entry,
        claim=claim,
        findings=findings(entry, headline),
        pictures=[
            {"title": picture.title, "caption": picture.caption, "source": _embedded(picture)} for picture in pictures
        ],
        tables=tables(entry),
        machine=machine_line(entry),
        code=code_line(entry),
        versions=", ".join(f"{name} {version}" for name, version in entry.versions.items()),
        raw=entry.model_dump_json(indent=2),
    )
    write_whole(path, page)


def machine_line(entry: LedgerEntry) -> str:
    """The machine, and the speeds it reached."""
    machine, peaks = entry.machine, entry.peaks
    text = f"{machine.cpu}, {machine.cores} cores, {machine.memory / 2**30:.0f} GiB, {machine.os}"
    if machine.accelerators:
        text = f"{', '.join(machine.accelerators)} in {text}"
    if peaks is None:
        return text
    products = ", ".join(f"{dtype} {flops / 1e9:,.0f} GFLOP/s" for dtype, flops in peaks.matmul.items())
    return (
        f"{text}; measured peaks of {peaks.device} with {peaks.threads} threads: matmul {products}; copy "
        f"{peaks.copy_bandwidth / 1e9:.1f} GB/s, read {peaks.read_bandwidth / 1e9:.1f} GB/s"
    )


def code_line(entry: LedgerEntry) -> str:
    """The code that ran."""
    if entry.commit is None:
        return "installed package, no checkout"
    return f"commit {entry.commit[:12]}{' with changes' if entry.dirty else ''}"


def _where(entry: LedgerEntry) -> str:
    return ", ".join(entry.machine.accelerators) or f"{entry.machine.cores} cores"


def _embedded(picture: Picture) -> str:
    """The picture as a data URI, a vector one if there is."""
    suffix = next(suffix for suffix in _MEDIA if suffix in picture.files)
    data = base64.b64encode(picture.files[suffix].read_bytes()).decode()
    return f"data:{_MEDIA[suffix]};base64,{data}"
