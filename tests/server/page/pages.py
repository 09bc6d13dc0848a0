"""What the tests of the page do with it, as a person would."""

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart import AsyncEngine

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WHY = "the page's end-to-end tests need playwright: pip install playwright"
PATIENCE = 20_000
"""Milliseconds in which something must have come to be seen."""
VIEWS = ("chat", "complete", "live", "compare", "methods")
STORY = "Once upon a time there was a little girl who lived near a big forest. " * 10
SETTINGS: dict[str, Any] = {"dtype": "float32", "num_pages": 256, "max_model_len": 512}


def engine_of(checkpoint: Path, **settings: Any) -> AsyncEngine:
    """An engine of its own for a test."""
    return AsyncEngine.from_model(str(checkpoint), **SETTINGS, **settings)


def slow_down(engine: AsyncEngine, seconds: float) -> None:
    step = engine.engine.step

    def slow() -> Any:
        time.sleep(seconds)
        return step()

    engine.engine.step = slow  # type: ignore[method-assign]


@contextmanager
def watched(browser: "Browser", url: str, *also: str, **options: Any) -> "Iterator[Page]":
    """A page at `url` that complains about nothing and talks to no server but that and `also`."""
    with ExitStack() as stack:
        context = browser.new_context(**options)
        stack.callback(context.close)
        shown = context.new_page()
        shown.set_default_timeout(PATIENCE)
        complaints: list[str] = []
        expected = re.compile(r"status of (401|404|400)")
        shown.on(
            "console",
            lambda m: complaints.append(m.text) if m.type == "error" and not expected.search(m.text) else None,
        )
        shown.on("pageerror", lambda error: complaints.append(str(error)))
        shown.on("request", lambda r: None if r.url.startswith((url, *also)) else complaints.append(r.url))
        shown.goto(url)
        yield shown
        assert complaints == []


def open_view(page: "Page", name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def ask(page: "Page", text: str, tokens: int = 12) -> None:
    page.get_by_text("Settings").first.click()
    page.get_by_label("Most tokens").first.fill(str(tokens))
    page.get_by_role("textbox", name="Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def drop(page: "Page", selector: str, name: str, text: str) -> None:
    """Drop a file as a hand would."""
    page.evaluate(
        """([selector, name, text]) => {
            const data = new DataTransfer();
            data.items.add(new File([text], name, { type: "text/plain" }));
            for (const kind of ["dragenter", "dragover", "drop"]) {
                const event = new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
                document.querySelector(selector).dispatchEvent(event);
            }
        }""",
        [selector, name, text],
    )
