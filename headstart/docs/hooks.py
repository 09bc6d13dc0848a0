"""MkDocs calls this: it adds the generated pages to the written ones, and fills what written pages ask for."""

import logging
from itertools import groupby
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from headstart.docs.catalogue import FOLDER, index_page, method_page, page_name
from headstart.docs.measurements import measurements_page
from headstart.docs.pages import filled
from headstart.evaluation import ledger
from headstart.evaluation.ledger import LedgerEntry
from headstart.methods import registry

# A warning here fails a strict build, as those of MkDocs do.
_LOG = logging.getLogger("mkdocs.plugins.headstart")
_MEASURED = "headstart_measured"
"""Where the ledger's entries by method are kept while a site is built."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the catalogue and the measurements, and give the catalogue its place in the menu."""
    cards, entries = registry.catalogue(), _read(Path(config.config_file_path).parent / "benchmarks" / "ledger")
    measured = config.extra[_MEASURED] = _by_method(entries)
    pages = {f"{FOLDER}/index.md": index_page(cards, measured), "measurements.md": measurements_page(entries)}
    keys = [card.key for card in cards]
    pages |= {page_name(card): method_page(card, measured.get(card.key, []), keys) for card in cards}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    stages = [
        {stage: [{card.key: page_name(card)} for card in members]}
        for stage, members in groupby(cards, key=lambda card: card.stage)
    ]
    config.nav = [_opened(item, stages) for item in config.nav or []]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill what a written page asks for."""
    return markdown if page.file.generated_by else filled(markdown, config.extra[_MEASURED])


def _opened(item: Any, stages: list[dict[str, Any]]) -> Any:
    """The menu's entry of the catalogue with its pages under it; any other as it is."""
    index = f"{FOLDER}/index.md"
    return {name: [index, *stages] if page == index else page for name, page in item.items()}


def _read(directory: Path) -> list[LedgerEntry]:
    """The ledger, the newest entry first."""
    entries, refused = ledger.scan(directory) if directory.is_dir() else ([], [])
    for error in refused:
        _LOG.warning(str(error))
    return sorted(entries, key=lambda entry: entry.created, reverse=True)


def _by_method(entries: list[LedgerEntry]) -> dict[str, list[LedgerEntry]]:
    found: dict[str, list[LedgerEntry]] = {}
    for entry in entries:
        if entry.method is not None:
            found.setdefault(entry.method, []).append(entry)
    return found
