"""Watching, comparing and looking things up on the page."""

import random
import re
from pathlib import Path

import pytest

from headstart.methods import registry
from tests.server.harness import Running, running
from tests.server.page.pages import PATIENCE, STORY, WHY, engine_of, open_view, watched

pytest.importorskip("playwright.sync_api", reason=WHY)

from playwright.sync_api import Browser, Page, expect

expect.set_options(timeout=PATIENCE)


def test_the_engine_is_watched_at_work(page: Page, served: Running) -> None:
    open_view(page, "Live")
    expect(page.get_by_text("Nothing yet.").or_(page.locator("svg.plot")).first).to_be_visible()
    asked = {"prompt": STORY, "max_tokens": 120, "ignore_eos": True, "stream": True, "cache_salt": "of its own"}
    with served.http.stream("POST", "/v1/completions", json=asked) as response:
        lines = response.iter_lines()
        next(lines)
        row = page.locator(".requests tbody tr")
        expect(row).to_have_count(1)
        expect(row).to_contain_text("writing")
        expect(page.locator(".tiles")).to_contain_text(re.compile(r"Running\s*1"))
        expect(page.get_by_role("img", name=re.compile("in use"))).to_be_visible()
        for _ in lines:
            pass
    served.wait_until_idle()
    expect(page.locator(".requests")).to_contain_text("None at the moment.")
    expect(page.get_by_role("img", name=re.compile("Time to first token: p50"))).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("Time between tokens: p50"))).to_be_visible()
    colours = page.locator("canvas").evaluate(
        """canvas => {
            const seen = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            const kinds = new Set();
            for (let at = 0; at < seen.length; at += 4) kinds.add(seen.slice(at, at + 3).join());
            return [...kinds];
        }"""
    )
    assert {"36,105,179", "180,95,6"} <= set(colours), "tokens read and tokens written are both drawn"
    page.locator("canvas").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".readout")).to_have_text(re.compile(r"step [\d,]+: \d+ read \+ \d+ written of 64"))
    legend = page.locator("figure", has_text="Memory for keys").get_by_role("listitem")
    shown = [int(text) for text in re.findall(r": ([\d,]+) \(", " ".join(legend.all_inner_texts()).replace(",", ""))]
    assert sum(shown) == served.stats().pages_total
    page.get_by_role("button", name="Pause").click()
    before = page.locator(".tiles").inner_text()
    served.post("/v1/completions", {"prompt": "Hi", "max_tokens": 3})
    page.wait_for_timeout(900)
    assert page.locator(".tiles").inner_text() == before
    page.get_by_role("button", name="Last minute").click()
    expect(page.get_by_role("heading", name="Tokens per second")).to_be_visible()


def test_steps_are_binned_without_losing_any(page: Page) -> None:
    draw = random.Random(1)
    began = sorted(draw.uniform(0, 80) for _ in range(500))
    steps = [{"began": at, "prefill": draw.randrange(100), "decode": draw.randrange(30)} for at in began]
    bins = page.evaluate("async steps => (await import('/page/timeline.js')).binned(steps, 80)", steps)
    recent = [step for step in steps if step["began"] >= 20]
    assert sum(each["steps"] for each in bins) == len(recent)
    assert sum(each["read"] for each in bins) * 0.5 == pytest.approx(sum(step["prefill"] for step in recent))
    assert sum(each["written"] for each in bins) * 0.5 == pytest.approx(sum(step["decode"] for step in recent))


def test_two_sides_of_one_server_are_compared(page: Page) -> None:
    open_view(page, "Compare")
    page.get_by_label("Prompt", exact=True).fill(STORY)
    page.get_by_text("Settings").last.click()
    page.get_by_label("Most tokens").last.fill("16")
    page.get_by_role("button", name="Compare", exact=True).click()
    verdict = page.locator(".verdict")
    expect(verdict).to_contain_text("Both answers are the same")
    cells = verdict.get_by_role("row", name=re.compile("From the cache")).get_by_role("cell").all_inner_texts()
    assert cells[-1] == "0%", "side B reads anew"
    expect(page.locator("mark")).to_have_count(0)


def test_another_server_is_the_other_side(browser: Browser, served: Running, checkpoint: Path) -> None:
    other = engine_of(checkpoint, use=["sarathi-serve:chunk=48"])
    with running(other, allowed_origins=[served.url]) as second, running(engine_of(checkpoint)) as closed:
        with watched(browser, served.url, second.url) as page:
            open_view(page, "Compare")
            page.get_by_label("Prompt", exact=True).fill("Once upon a time")
            page.get_by_text("Settings").last.click()
            page.get_by_label("Temperature").last.fill("1")
            page.get_by_role("region", name="Side B").get_by_label("Server", exact=True).fill(second.url)
            page.get_by_role("button", name="Compare", exact=True).click()
            expect(page.locator(".verdict")).to_contain_text(re.compile("they part|differ from the first"))
            expect(page.get_by_role("region", name="Side B")).to_contain_text("--use sarathi-serve:chunk=48")
            expect(page.locator("mark")).not_to_have_count(0)
            one, two = page.locator(".side .said").evaluate_all("all => all.map(e => e.textContent)")
            first, second_rest = page.locator("mark").first.inner_text(), page.locator("mark").last.inner_text()
            assert one[: len(one) - len(first)] == two[: len(two) - len(second_rest)]
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{served.url}/#compare")
        page.get_by_label("Prompt", exact=True).fill("Once")
        page.get_by_role("region", name="Side B").get_by_label("Server", exact=True).fill(closed.url)
        page.get_by_role("button", name="Compare", exact=True).click()
        expect(page.get_by_role("alert").filter(has_text=f"--allowed-origins {served.url}")).to_be_visible()
        context.close()


def test_two_stacks_of_one_server_are_compared(browser: Browser, checkpoint: Path) -> None:
    """Each side by methods of its own; the times, and where the answers part, stand side by side."""
    lazy = "lazyllm:keep=0.3,layers=1"
    engine = engine_of(checkpoint)
    with running(engine, allow_use=[lazy, "flashattention"]) as server, watched(browser, server.url) as page:
        open_view(page, "Compare")
        page.get_by_label("Prompt", exact=True).fill(STORY)
        one, two = (page.get_by_role("region", name=f"Side {name}") for name in "AB")
        expect(one.get_by_label("Methods", exact=True)).to_have_value("server")
        expect(one.get_by_label(lazy)).to_be_hidden()
        one.get_by_label("Methods", exact=True).select_option("Only those chosen here")
        two.get_by_label("Methods", exact=True).focus()
        page.keyboard.press("End")
        two.get_by_label(lazy).check()
        expect(one.get_by_label("Read the prompt anew")).to_be_checked()
        asked = []
        page.on("request", lambda r: asked.append(r.post_data_json) if r.method == "POST" else None)
        page.get_by_role("button", name="Compare", exact=True).click()
        verdict = page.locator(".verdict")
        expect(verdict).to_contain_text(re.compile("then they part|differ from the first"))
        assert [body["use"] for body in asked] == [[], [lazy]]
        expect(one).to_contain_text("this request: the model alone")
        expect(two).to_contain_text(f"this request: {lazy}")
        rows = {row.split("\t")[0]: row.split("\t")[1:] for row in verdict.get_by_role("row").all_inner_texts()}
        assert [cell.strip() for cell in rows["Distribution"]] == ["exact", "approximate"]
        assert all(re.match(r"[\d.]+ m?s", cell.strip()) for cell in rows["First token"])
        # Where they part is where the engine's answers part.
        texts = []
        for use in ([], [lazy]):
            asked_again = {"prompt": STORY, "max_tokens": 128, "temperature": 0, "use": use}
            texts.append(server.post("/v1/completions", asked_again).json()["choices"][0]["text"])
        common = next(place for place, pair in enumerate(zip(*texts, strict=False)) if pair[0] != pair[1])
        for side, text in zip((one, two), texts, strict=True):
            assert side.locator(".said").evaluate("e => e.textContent") == text
            assert side.locator("mark").evaluate("e => e.textContent") == text[common:]
        one.get_by_label("Methods", exact=True).select_option("As the server runs")
        expect(one.get_by_label(lazy)).to_be_hidden()


def test_where_texts_part_is_found_as_python_finds_it(page: Page) -> None:
    draw = random.Random(0)
    pairs = []
    for _ in range(300):
        common = "".join(draw.choices("ab é😀\n", k=draw.randrange(8)))
        pairs.append([common + "".join(draw.choices("ab😀", k=draw.randrange(4))) for _ in range(2)])
    found = page.evaluate(
        """async pairs => {
            const { commonLength, verdict } = await import("/page/compare.js");
            return pairs.map(([one, other]) => [one.slice(0, commonLength(one, other)), verdict(one, other)]);
        }""",
        pairs,
    )
    for (one, other), (common, sentence) in zip(pairs, found, strict=True):
        assert one.startswith(common) and other.startswith(common)
        assert common in (one, other) or one[len(common)] != other[len(common)]
        assert ("the same, all" in sentence) == (one == other)


def test_methods_are_searched_and_opened_from_the_keyboard(page: Page) -> None:
    open_view(page, "Methods")
    expect(page.get_by_text(f"{len(registry.catalogue())} methods")).to_be_visible()
    page.get_by_label("Search").fill("sarathi budget")
    expect(page.locator(".methods a")).to_have_count(
        sum(
            "sarathi" in (text := f"{c.key} {c.summary} {c.paper and c.paper.title}".lower()) and "budget" in text
            for c in registry.catalogue()
        )
    )
    page.locator(".methods a").filter(has_text="sarathi-serve").focus()
    page.keyboard.press("Enter")
    title = page.get_by_role("heading", name="sarathi-serve", exact=True)
    expect(title).to_be_focused()
    card = registry.card("sarathi-serve")
    assert card.claim
    expect(page.locator(".method blockquote")).to_have_text(card.claim.text)
    expect(page.get_by_text("headstart bench method sarathi-serve").first).to_be_visible()
    # Run from the checkout, its ledger is there to be drawn.
    expect(page.locator(".method svg.plot").first).to_be_visible()
    page.go_back()
    expect(page.get_by_label("Search")).to_have_value("sarathi budget")
    page.get_by_label("Status").select_option("planned")
    expect(page.locator(".methods .pill").filter(has_text="implemented")).to_have_count(0)
