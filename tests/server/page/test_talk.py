"""Talking to a model on the page: answers, documents, refusals."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from headstart import SamplingParams
from tests.server.harness import Running, running
from tests.server.page.pages import PATIENCE, STORY, WHY, ask, drop, engine_of, open_view, slow_down, watched

pytest.importorskip("playwright.sync_api", reason=WHY)

from playwright.sync_api import Browser, Page, expect

expect.set_options(timeout=PATIENCE)


def test_an_answer_streams_with_its_figures(page: Page, served: Running) -> None:
    ask(page, "Tell me of <b>the fox</b> & <img src=x onerror=alert(1)>", 40)
    figures = page.locator(".turn.assistant p.figures").last
    expect(figures).to_contain_text("first token after")
    expect(figures).to_contain_text("tokens/s")
    expect(figures).to_contain_text("40 tokens")
    assert len(page.locator(".turn.assistant .said").inner_text()) > 20
    # What looks like markup stays what was typed.
    expect(page.locator(".turn.user .said")).to_have_text("Tell me of <b>the fox</b> & <img src=x onerror=alert(1)>")
    assert page.locator("main b, main img").count() == 0
    expect(page.get_by_role("status").filter(has_text="Answer complete")).to_have_count(1)
    page.get_by_role("textbox", name="Message", exact=True).fill("And then?")
    page.get_by_role("button", name="Send").click()
    # The conversation so far is sent again, and found in the cache.
    expect(page.locator(".turn.assistant p.figures").last).to_contain_text("from the cache")
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".turn")).to_have_count(0)


def test_what_the_model_writes_is_text(browser: Browser, checkpoint: Path) -> None:
    engine = engine_of(checkpoint)
    with running(engine) as server:
        text = "<script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">"
        chunk = json.dumps({"choices": [{"text": text, "finish_reason": "stop"}]})
        with watched(browser, server.url) as page:
            page.route(
                "**/v1/completions",
                lambda route: route.fulfill(
                    content_type="text/event-stream",
                    body=f"data: {chunk}\n\ndata: [DONE]\n\n",
                ),
            )
            open_view(page, "Complete")
            page.get_by_label("Text to go on with").fill("x")
            page.get_by_role("button", name="Continue").click()
            expect(page.locator(".continued .said")).to_contain_text("<script>")
            assert page.title() == "Complete · Headstart"
            assert page.locator("main img, main script").count() == 0


def test_a_dropped_document_is_counted_read_and_read_once(page: Page, served: Running) -> None:
    drop(page, "#view-chat", "forest.txt", STORY)
    chip = page.get_by_role("listitem").filter(has_text="forest.txt")
    count = len(served.engine.encode(STORY, False))
    expect(chip).to_contain_text(f"{count} tokens")
    ask(page, "Who lives there?", 4)
    figures = page.locator(".turn.assistant p.figures")
    expect(figures).to_contain_text("prompt of")
    expect(page.locator(".turn.user")).to_contain_text("forest.txt")
    page.get_by_role("button", name="New chat").click()
    drop(page, "#view-chat", "forest.txt", STORY)
    page.get_by_role("textbox", name="Message", exact=True).fill("What is the forest like?")
    page.keyboard.press("Enter")
    expect(figures).to_contain_text("from the cache")
    share = re.search(r"([\d.]+)% of it from the cache", figures.inner_text())
    assert share and float(share[1]) > 60


def test_a_document_that_is_no_text_is_refused(page: Page) -> None:
    drop(page, "#view-chat", "picture.png", "\x00\x01\x02")
    expect(page.get_by_role("alert").filter(has_text="picture.png is not a text file")).to_be_visible()
    drop(page, "#view-chat", "words.txt", "Words.")
    page.get_by_role("button", name="Remove words.txt").click()
    expect(page.get_by_role("listitem").filter(has_text="words.txt")).to_have_count(0)
    expect(page.get_by_role("button", name="Add a document").first).to_be_focused()


def test_a_long_prompt_is_seen_being_read_and_can_be_stopped(browser: Browser, checkpoint: Path) -> None:
    engine = engine_of(checkpoint, max_num_batched_tokens=16)
    slow_down(engine, 0.15)
    with running(engine) as server, watched(browser, server.url) as page:
        ask(page, STORY, 100)
        expect(page.locator(".reading .figures")).to_have_text(re.compile(r"Read \d+ of \d+ tokens"))
        bar = page.get_by_role("progressbar", name="Reading the prompt")
        expect(bar).not_to_have_attribute("value", bar.get_attribute("value") or "")
        page.get_by_role("button", name="Stop").click()
        expect(page.locator(".turn.assistant p.figures")).to_have_text("stopped")
        server.wait_until_idle()


def test_a_refusal_is_shown_and_the_question_kept(page: Page) -> None:
    ask(page, "word " * 3000)
    expect(page.get_by_role("alert").filter(has_text="tokens")).to_be_visible()
    assert page.get_by_role("textbox", name="Message", exact=True).input_value().startswith("word word")
    page.get_by_role("textbox", name="Message", exact=True).fill("short")
    page.get_by_label("Temperature").first.fill("7")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert").filter(has_text="Temperature")).to_be_visible()


def test_a_text_goes_on(page: Page, llm: Any) -> None:
    open_view(page, "Complete")
    page.get_by_label("Text to go on with").fill("Once upon a time")
    page.get_by_text("Settings").last.click()
    page.get_by_label("Temperature").last.fill("0")
    page.get_by_label("Most tokens").last.fill("20")
    page.get_by_role("button", name="Continue").click()
    expect(page.locator(".continued p.figures")).to_contain_text("20 tokens")
    (expected,) = llm.generate(["Once upon a time"], SamplingParams(temperature=0, max_tokens=20))
    assert (
        page.locator(".continued .said").evaluate("e => e.textContent") == "Once upon a time" + expected.outputs[0].text
    )


def test_a_server_that_is_gone_is_said_to_be(browser: Browser, checkpoint: Path) -> None:
    with running(engine_of(checkpoint)) as server:
        context = browser.new_context()
        page = context.new_page()
        page.goto(server.url)
        expect(page.locator("#model")).to_have_text("stories")
    page.get_by_role("textbox", name="Message", exact=True).fill("Hello")
    page.keyboard.press("Enter")
    expect(page.get_by_role("tabpanel").get_by_role("alert")).to_have_text("there is no answer from this server")
    expect(page.locator("#banner")).to_be_visible(timeout=10_000)
    context.close()
