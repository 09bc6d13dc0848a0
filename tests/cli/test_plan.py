"""`headstart plan`, as users type it."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.evaluation.plan.test_plan import YI_34B


@pytest.fixture
def yi(tmp_path: Path) -> str:
    path = tmp_path / "yi-34b.json"
    path.write_text(json.dumps(YI_34B))
    return str(path)


def test_the_papers_example_from_a_config_alone(headstart: Callable, yi: str) -> None:
    ran = headstart("plan", yi, "--gpu", "a100", "--lengths", "4000,50000", "--link", "20GB", "--json")
    assert ran.code == 0, ran.err
    short, long = ran.json["lengths"]
    assert ran.json["model"]["kv_token_bytes"] == 245_760 and long["kv_bytes"] == 12_288_000_000
    assert (short["users"], long["users"]) == (11, 0)
    assert long["prefill"] == pytest.approx(17.8, rel=0.02)
    said = headstart("plan", yi, "--gpu", "a100", "--lengths", "4000,50000", "--methods")
    assert "none fits" in said.out and "sarathi-serve" in said.out and "source" in said.out


def test_the_catalogue(headstart: Callable) -> None:
    said = headstart("plan", "--gpu", "list")
    assert said.code == 0 and "rtx4090" in said.out and "data sheet" in said.out
    assert len(headstart("plan", "--gpu", "list", "--json").json) == 6


def test_weights_that_do_not_fit_are_said(headstart: Callable, yi: str) -> None:
    said = headstart("plan", yi, "--gpu", "l4", "--lengths", "1000").out
    assert "the weights alone do not fit: they need 3 of these devices" in said


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs matplotlib")
def test_the_picture(headstart: Callable, yi: str, tmp_path: Path) -> None:
    ran = headstart("plan", yi, "--gpu", "h200", "--plot", str(tmp_path / "plan.svg"))
    assert ran.code == 0 and (tmp_path / "plan.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--gpu", "h101"], "there is no device 'h101' in the catalogue; did you mean 'h100'"),
        (["--gpu", "h100", "--fit"], "--fit compares with runs on this machine; leave out --gpu"),
        (["--gpu", "h100", "--lengths", "1e3"], "--lengths takes whole numbers above 0"),
        (["--gpu", "h100", "--lengths", "99999999"], "positions apart, fewer than the 99,999,999 asked for"),
        (["--gpu", "h100", "--memory", "much"], "a size is a number with KB"),
        (["--gpu", "h100", "--plot", "plan.txt"], "a picture is a .png or an .svg, not 'plan.txt'"),
        (["no/such/dir", "--gpu", "h100"], "there is no directory 'no/such/dir'"),
    ],
)
def test_bad_input_is_one_sentence(headstart: Callable, arguments: list[str], sentence: str) -> None:
    ran = headstart("plan", *arguments)
    assert ran.code == 2 and sentence in ran.err and ran.err.count("\n") == 1 and "Traceback" not in ran.err
