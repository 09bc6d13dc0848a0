"""The page's files and what it asks the server for, without a browser."""

import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart import AsyncEngine
from headstart.engine.process import ProcessEngine
from headstart.evaluation import ledger
from headstart.methods import registry
from headstart.server.statistics import SAMPLES_KEPT, Recent
from headstart.server.web import assets
from tests.server.harness import Running, running

LEDGER = Path(__file__).parents[2] / "benchmarks" / "ledger"
HEADERS = ("content-security-policy", "x-content-type-options", "referrer-policy")


@pytest.fixture(scope="module")
def keyed(checkpoint: Path) -> Iterator[Running]:
    with running(AsyncEngine.from_model(str(checkpoint)), api_keys=["first", "second"]) as server:
        yield server


def test_the_page_brings_everything_along_and_asks_nobody_else(server: Running) -> None:
    page = server.http.get("/")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "script-src 'self';" in policy and "default-src 'none'" in policy and "unsafe" not in policy
    wanted = {"index.html"}
    for name, asset in assets().items():
        text = asset.content.decode()
        wanted |= set(re.findall(r'(?:href|src)="/page/([^"]+)"', text))
        wanted |= set(re.findall(r'from "\./([^"]+)"', text))
        addresses = set(re.findall(r"https?://[\w.]+", text))
        # Names of namespaces, examples in a form, and where a paper can be read: nothing that is loaded.
        assert addresses <= {"http://www.w3.org", "http://127.0.0.1", "https://arxiv.org"}, name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            name
        )
        response = server.http.get(f"/page/{name}")
        assert response.content == asset.content
        assert all(header in response.headers for header in HEADERS)
    assert wanted == set(assets())


def test_a_file_is_sent_once_and_nothing_beside_the_page_is_sent(server: Running) -> None:
    first = server.http.get("/page/app.js")
    again = server.http.get("/page/app.js", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304 and not again.content
    assert server.http.head("/").status_code == 200
    for path in (
        "/page/",
        "/page/none.js",
        "/page/..%2Fapp.py",
        "/page/%2e%2e/app.py",
        "/page/app.js/x",
        "/page/__init__.py",
    ):
        response = server.http.get(path)
        assert response.status_code == 404, path
        assert response.json()["error"]["message"]


def test_the_page_is_open_and_what_it_shows_is_not(keyed: Running) -> None:
    with httpx.Client(base_url=keyed.url) as stranger:
        for path in ("/", "/page/app.js", "/page/icon.svg"):
            assert stranger.get(path).status_code == 200
        for path in ("/stats", "/catalogue", "/catalogue/sarathi-serve", "/pages", "/page"):
            assert stranger.get(path).status_code == 401, path


def test_a_tenant_sees_its_own_pages_by_name_and_the_others_as_one(keyed: Running) -> None:
    prompts = {"first": [1, *range(300, 380)], "second": [1, *range(100, 260)]}
    for key, prompt in prompts.items():
        headers = {"Authorization": f"Bearer {key}"}
        asked = {"prompt": prompt, "max_tokens": 2, "cache_salt": f"salt of {key}"}
        assert keyed.http.post("/v1/completions", json=asked, headers=headers).status_code == 200
    keyed.wait_until_idle()
    want = {"first": (5, 10), "second": (10, 5)}
    cached: dict[str, tuple[int, int]] = {}
    # Pages by tenant are counted now and then, not for each look at them.
    deadline = time.monotonic() + 30
    while cached != want and time.monotonic() < deadline:
        time.sleep(0.05)
        for key in prompts:
            shown = keyed.http.get("/stats", headers={"Authorization": f"Bearer {key}"})
            assert "salt of" not in shown.text
            tenants = shown.json()["engine"]["pages"]["tenants"]
            if len(tenants) == 2:
                own, others = tenants
                assert own["name"] and others["name"] is None
                cached[key] = own["cached"], others["cached"]
    assert cached == want


def test_stats_count_what_happened(server: Running) -> None:
    before = server.http.get("/stats").json()
    prompt = [1, *range(100, 200)]
    asked = {"prompt": prompt, "max_tokens": 6, "ignore_eos": True, "stream": True}
    for _ in range(2):
        with server.http.stream("POST", "/v1/completions", json=asked) as response:
            response.read()
    server.wait_until_idle()
    after = server.http.get("/stats", params={"after": before["engine"]["step"]}).json()
    steps = after["engine"]["steps"]
    assert [step[0] for step in steps] == list(range(before["engine"]["step"] + 1, after["engine"]["step"] + 1))
    found = after["totals"]["cached_tokens"] - before["totals"]["cached_tokens"]
    assert found >= 96
    assert sum(step[3] for step in steps) == 2 * len(prompt) - found
    assert sum(step[4] for step in steps) == 2 * 5
    assert after["latency"]["first_token"]["total"] - before["latency"]["first_token"]["total"] == 2
    assert after["latency"]["gap"]["total"] - before["latency"]["gap"]["total"] == 10
    assert after["server"]["chat"] is True and after["server"]["exact"] is True


@pytest.mark.parametrize("after", ["-1", "x", "1.5", "9" * 40, "²", ""])
def test_what_is_no_step_is_refused(server: Running, after: str) -> None:
    response = server.http.get("/stats", params={"after": after})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "after"


def test_the_catalogue_holds_every_card(server: Running) -> None:
    shown = server.http.get("/catalogue").json()
    cards = registry.catalogue()
    assert [card["key"] for card in shown["methods"]] == [card.key for card in cards]
    assert {card["stage"] for card in shown["methods"]} <= set(shown["stages"])
    assert server.http.get("/catalogue/minferense").status_code == 404
    assert "minference" in server.http.get("/catalogue/minferense").json()["error"]["message"]


def test_every_card_can_be_opened(server: Running) -> None:
    for card in registry.catalogue():
        shown = server.http.get(f"/catalogue/{card.key}").json()
        assert shown["summary"] == card.summary
        assert isinstance(shown["measurements"], list)


def test_measurements_come_from_the_ledger(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(LEDGER)
    entries = [entry for entry in ledger.scan(LEDGER)[0] if entry.method is not None]
    assert entries
    for entry in entries:
        shown = server.http.get(f"/catalogue/{entry.method}").json()["measurements"]
        (found,) = [each for each in shown if each["command"] == entry.command and each["date"] in f"{entry.created}"]
        rows = {(row.name, row.side): row for row in entry.rows}
        for group in found["ranges"]:
            for side in group["sides"]:
                row = rows[group["name"], side["name"]]
                assert (side["median"], side["low"], side["high"]) == (row.median, *row.spread)
        points = [point for line in found["lines"] for side in line["sides"] for point in side["points"]]
        assert found["ranges"] or points


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=80))
def test_latencies_are_summed_up_as_numpy_does(samples: list[float]) -> None:
    recent = Recent()
    for sample in samples:
        recent.add(sample)
    shown = recent.summary()
    for name, value in shown["percentiles"].items():
        assert value == np.percentile(samples, int(name), method="inverted_cdf")
    assert sum(bin[2] for bin in shown["bins"]) == len(samples) == shown["count"]
    assert all(a[1] == b[0] for a, b in zip(shown["bins"], shown["bins"][1:], strict=False))
    for low, high, count in shown["bins"][1:]:
        assert count == sum(low * (1 - 1e-9) <= max(s, 1e-5) < high * (1 + 1e-9) for s in samples) or any(
            np.isclose(s, (low, high), rtol=1e-8).any() for s in samples
        )


def test_only_the_last_latencies_count() -> None:
    recent = Recent()
    recent.add(5.0, 3)
    recent.add(0.1, SAMPLES_KEPT)
    assert recent.summary()["percentiles"]["99"] == 0.1
    assert recent.summary()["total"] == SAMPLES_KEPT + 3
    assert Recent().summary() == {"total": 0, "count": 0, "percentiles": {}, "bins": []}


def luminance(colour: str) -> float:
    """Relative luminance as WCAG defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_colours_are_told_apart_in_light_and_dark() -> None:
    style = assets()["base.css"].content.decode()
    pairs = re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\);", style)
    light, dark = ({name: colours[theme] for name, *colours in pairs} for theme in (0, 1))
    for theme in (light, dark):
        for ground in ("ground", "surface", "raised"):
            for text in ("text", "soft", "accent", "bad"):
                assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
        assert contrast(theme["on-accent"], theme["accent"]) >= 4.5
        assert contrast(theme["text"], theme["part"]) >= 4.5
        for mark in ("read", "write", "cache"):
            assert contrast(theme[mark], theme["surface"]) >= 3, mark


def test_an_engine_in_a_process_of_its_own_is_watched_too(checkpoint: Path) -> None:
    engine = ProcessEngine.from_model(model=str(checkpoint), num_pages=64, max_model_len=512)
    with running(engine) as server:  # type: ignore[arg-type]
        prompt = [1, *range(100, 200)]
        assert (
            server.post("/v1/completions", {"prompt": prompt, "max_tokens": 3, "ignore_eos": True}).status_code == 200
        )
        shown = server.http.get("/stats").json()["engine"]
        assert [step[3:5] for step in shown["steps"]] == [[101, 0], [0, 1], [0, 1]]
        (tenant,) = shown["pages"]["tenants"]
        assert tenant["name"] == "everybody"
        assert tenant["held"] + tenant["cached"] + shown["pages"]["free"] == 64


def test_answers_are_counted_by_route_and_status(server: Running) -> None:
    def counted() -> dict[tuple[str, str], float]:
        found = re.findall(
            r'http_requests_total\{code="(\d+)",model_name="[^"]*",path="([^"]*)"\} (\S+)',
            server.http.get("/metrics").text,
        )
        return {(path, code): float(value) for code, path, value in found}

    before = counted()
    server.http.get("/page/app.js")
    server.http.get("/page/none.js")
    server.http.get("/a/path/of/somebody's/own")
    server.post("/v1/completions", {"prompt": "Hi", "max_tokens": -1})
    after = counted()
    grown = {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}
    assert grown == {
        ("/page/{name}", "200"): 1,
        ("/page/{name}", "404"): 1,
        ("other", "404"): 1,
        ("/v1/completions", "400"): 1,
        ("/metrics", "200"): 1,
    }


def test_polling_is_kept_out_of_the_log(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("uvicorn.access")
    said = '%s - "%s %s HTTP/%s" %d'
    with caplog.at_level("INFO", "uvicorn.access"):
        for path in ("/stats?after=3", "/stats", "/v1/models"):
            log.info(said, "127.0.0.1:9", "GET", path, "1.1", 200)
    assert [record.args[2] for record in caplog.records if isinstance(record.args, tuple)] == ["/stats", "/v1/models"]
