"""A browser and a page in it, for the tests of the page from end to end."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from headstart import AsyncEngine
from tests.server.harness import Running, running
from tests.server.page.pages import SETTINGS, WHY, slow_down, watched

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="package")
def browser() -> "Iterator[Browser]":
    """Playwright's own Chromium, else the one that `CHROMIUM` or the path names."""
    api = pytest.importorskip("playwright.sync_api", reason=WHY)
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with api.sync_playwright() as playwright:
        refusals = []
        for path in (None, found):
            try:
                launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            except api.Error as error:
                refusals.append(str(error).splitlines()[0])
                continue
            yield launched
            launched.close()
            return
        pytest.skip(f"no Chromium starts here (playwright install chromium): {refusals[-1]}")


@pytest.fixture(scope="package")
def served(checkpoint: Path) -> Iterator[Running]:
    """A server whose steps take long enough to be seen."""
    engine = AsyncEngine.from_model(str(checkpoint), max_num_batched_tokens=64, **SETTINGS)
    slow_down(engine, 0.015)
    with running(engine) as server:
        yield server


@pytest.fixture
def page(browser: "Browser", served: Running) -> "Iterator[Page]":
    """A page on the server; it complains about nothing and talks to nobody else."""
    with watched(browser, served.url, viewport={"width": 1100, "height": 800}) as shown:
        yield shown
