"""The worked example of `docs/write-a-method.md` is a method that works."""

import re
from pathlib import Path

import pytest

from headstart import LLM, SamplingParams
from headstart.methods import registry

PAGE = Path(__file__).parents[2] / "docs" / "write-a-method.md"


@pytest.fixture
def example():
    """The method of the page, registered for one test."""
    before = dict(registry._METHODS)
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(code[0].splitlines()) < 60
    exec(code[0], {"__name__": "example"})
    yield code
    registry._METHODS.clear()
    registry._METHODS.update(before)


def test_the_page_runs_as_it_stands(example, capsys):
    """Both code blocks run, and the second prints a continuation."""
    exec(example[1], {})
    assert capsys.readouterr().out.strip()


def test_the_example_keeps_what_it_says(example, stories):
    """With room for every page the answer is the plain one; with little it differs only beyond `min_context`."""
    greedy = SamplingParams(max_tokens=300, temperature=0, ignore_eos=True)
    plain = LLM(stories, dtype="float32").generate("Once upon a time", greedy)[0].outputs[0].token_ids
    wide = LLM(stories, dtype="float32", use=["recent-pages:keep=1000"])
    assert not wide.engine.exact
    assert wide.generate("Once upon a time", greedy)[0].outputs[0].token_ids == plain
    narrow = LLM(stories, dtype="float32", use=["recent-pages:keep=1"])
    output = narrow.generate("Once upon a time", greedy)[0]
    assert not output.exact
    short = 256 - len(output.prompt_token_ids)
    assert output.outputs[0].token_ids[:short] == plain[:short]
    assert output.outputs[0].token_ids != plain


def test_the_example_plays_with_the_exact_attention_of_neighbours(example, stories):
    """Short contexts beside long ones keep the default attention in the same step."""
    llm = LLM(stories, dtype="float32", use=["recent-pages:keep=1"])
    greedy = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    story = "Once upon a time there was a little dog. " * 26
    alone = LLM(stories, dtype="float32").generate("Lily and Tom", greedy)[0].outputs[0].token_ids
    long, short = llm.generate([story, "Lily and Tom"], greedy)
    assert len(long.prompt_token_ids) > 256
    assert short.outputs[0].token_ids == alone
