"""The page for everybody: by keyboard, with a screen reader, on a phone, in the dark, with a key."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.server.harness import Running, running
from tests.server.page.pages import PATIENCE, VIEWS, WHY, ask, engine_of, watched

pytest.importorskip("playwright.sync_api", reason=WHY)

from playwright.sync_api import Browser, Page, expect

expect.set_options(timeout=PATIENCE)


def test_everything_is_reached_by_keyboard(page: Page) -> None:
    page.locator("body").evaluate("e => e.ownerDocument.activeElement.blur()")
    page.keyboard.press("Tab")
    page.reload()
    page.wait_for_selector("textarea")
    page.evaluate("document.activeElement.blur()")
    seen = []
    for _ in range(14):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate(
                "(e => e.textContent.trim() || e.getAttribute('aria-label') || e.tagName)(document.activeElement)"
            )
        )
    for name in ("Chat", "Add a document", "New chat", "Send", "Settings"):
        assert name in seen, seen
    assert "Live" not in seen, "of the tabs only the chosen one is in the order"
    tab = page.get_by_role("tab", name="Chat")
    tab.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Live")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("tabpanel", name="Live")).to_be_visible()
    expect(page.get_by_role("tab", name="Live")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Home")
    expect(tab).to_be_focused()


@pytest.mark.parametrize("view", VIEWS)
def test_every_control_has_a_name(page: Page, view: str) -> None:
    page.goto(page.url.split("#")[0] + f"#{view}")
    page.wait_for_timeout(400)
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    roles = {
        "button",
        "textbox",
        "searchbox",
        "spinbutton",
        "combobox",
        "checkbox",
        "tab",
        "tabpanel",
        "link",
        "img",
        "image",
        "progressbar",
        "figure",
        "dialog",
        "region",
        "log",
    }
    nameless = [
        node["role"]["value"]
        for node in nodes
        if not node.get("ignored")
        and node.get("role", {}).get("value") in roles - {"figure"}
        and not node.get("name", {}).get("value")
    ]
    assert nameless == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    assert page.evaluate("[...document.querySelectorAll('h1')].length") == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_sticks_out(browser: Browser, served: Running, scheme: Any) -> None:
    size = {"width": 360, "height": 740}
    with watched(browser, served.url, viewport=size, color_scheme=scheme, has_touch=True, is_mobile=True) as page:
        ask(page, "x" * 300, 8)
        expect(page.locator(".turn.assistant p.figures")).to_contain_text("first token")
        for view in (*VIEWS, "methods/sarathi-serve"):
            page.goto(f"{served.url}/#{view}")
            page.wait_for_timeout(250)
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, view
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(247, 247, 245)" if scheme == "light" else "rgb(20, 23, 26)")


def test_the_theme_is_chosen_and_kept(page: Page) -> None:
    button = page.get_by_role("button", name=re.compile("^Theme"))
    button.click()
    button.click()
    expect(button).to_have_text("Dark")
    page.reload()
    expect(button).to_have_text("Dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"


def test_a_key_is_asked_for_once_and_stays_in_the_tab(browser: Browser, checkpoint: Path) -> None:
    with running(engine_of(checkpoint), api_keys=["open sesame"]) as server, watched(browser, server.url) as page:
        dialog = page.get_by_role("dialog", name="This server asks for a key")
        expect(dialog).to_be_visible()
        page.get_by_label("API key").fill("wrong")
        page.get_by_role("button", name="Use the key").click()
        expect(dialog).to_be_visible()
        page.get_by_label("API key").fill("open sesame")
        page.keyboard.press("Enter")
        expect(page.locator("#model")).to_have_text("stories")
        ask(page, "Hello", 3)
        expect(page.locator(".turn.assistant p.figures")).to_contain_text("first token")
        assert page.evaluate("JSON.stringify(localStorage)").find("sesame") < 0
        page.reload()
        expect(page.locator("#model")).to_have_text("stories")
        expect(dialog).to_be_hidden()
