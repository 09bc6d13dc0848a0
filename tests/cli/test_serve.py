"""`headstart serve`: what is refused before a model loads. Its life as a process is tested with the server."""

import json
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from headstart.evaluation.load.served import ServedModel
from headstart.evaluation.machine import usable_cores

Run = Callable[..., Any]
NOWHERE = ("/nowhere/at/all", "--port", "0")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--log-level", "foo"], "'foo' is not one of"),
        (["--shutdown-timeout", "-1"], "--shutdown-timeout"),
        (["--api-key", ""], "API key is empty"),
        (["--api-key", "secret", "--api-key", "  "], "API key is empty"),
        (["--seed", "-1"], "seed must be"),
        (["--page-size", str(10**12)], "page_size must be"),
        (["--num-pages", "0"], "num_pages must be"),
        (["--device", "abacus"], "'abacus'"),
    ],
)
def test_options_that_cannot_be_are_refused_before_a_model_loads(
    headstart: Run, arguments: list[str], says: str
) -> None:
    ran = headstart("serve", *NOWHERE, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err
    assert "/nowhere" not in ran.err


@pytest.mark.parametrize("value", ["", "  "])
def test_a_blank_variable_for_the_key_does_not_open_the_server(
    headstart: Run, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("HEADSTART_API_KEY", value)
    ran = headstart("serve", *NOWHERE)
    assert ran.code == 2
    assert "API key is empty" in ran.err
    assert "/nowhere/at/all" in headstart("serve", *NOWHERE, "--api-key", "secret").err


@pytest.mark.skipif(usable_cores() < 2, reason="two engines need two cores")
def test_parted_engines_behind_one_address() -> None:
    """The embedded default: two workers on this machine."""
    body = json.dumps({"prompt": "Once upon a time, there was", "max_tokens": 5, "temperature": 0}).encode()
    with ServedModel(["--disaggregate", "prefill=1,decode=1"], threads=1) as served:
        request = urllib.request.Request(f"{served.url}/v1/completions", body, {"Content-Type": "application/json"})
        answer = json.load(urllib.request.urlopen(request, timeout=60))
        assert answer["usage"]["completion_tokens"] == 5 and answer["choices"][0]["finish_reason"] == "length"
        assert urllib.request.urlopen(f"{served.url}/metrics", timeout=60).status == 200


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--replicas", "2", "--disaggregate", "prefill=1,decode=1"], "leave out one of them"),
        (["--ray", "auto"], "--ray places the engines of a cluster: say how many"),
        (["--replicas", "2", "--no-engine-process"], "processes of their own"),
        (["--disaggregate", "half"], "takes prefill=N,decode=M, not 'half'"),
        (["--replicas", "4096"], "4096 engines need 4096"),
        (["--scheduling-policy", "fairest"], "must be one of fcfs, priority, fair, cache-aware"),
    ],
)
def test_clusters_that_cannot_be_are_said(headstart: Callable, arguments: list[str], sentence: str) -> None:
    ran = headstart("serve", "--port", "0", *arguments)
    assert ran.code == 2 and sentence in ran.err and ran.err.count("\n") == 1
