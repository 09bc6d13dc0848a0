"""`headstart serve`: what is refused before a model loads. Its life as a process is tested with the server."""

from collections.abc import Callable
from typing import Any

import pytest

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
