"""What comes with the package beside the built-in model: it is found by name, and fits it."""

import pytest

from headstart.checkpoints.default import embedded_checkpoints
from headstart.checkpoints.reader import load_checkpoint
from headstart.engine.llm import LLM
from headstart.engine.params import SamplingParams
from headstart.errors import CheckpointError

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
PROMPT = "Once upon a time there was a king who"


def test_they_are_found_by_their_names() -> None:
    assert {"default", "headstart-base", "headstart-draft", "headstart-swiftkv"} <= set(embedded_checkpoints())


@pytest.mark.parametrize("key", ["speculative", "pearl"])
def test_the_draft_guesses_for_the_built_in_model(key: str) -> None:
    """Some of what it says stands, and the text is the model's."""
    plain = LLM(max_model_len=256).generate(PROMPT, GREEDY)[0].outputs[0].token_ids
    llm = LLM(max_model_len=256, use=[f"{key}:draft=headstart-draft,guard=false"])
    assert llm.generate(PROMPT, GREEDY)[0].outputs[0].token_ids == plain
    assert llm.engine.stats().drafts["accepted"] > 0


def test_the_distilled_projections_serve_the_built_in_model() -> None:
    """Found without a name, and by it; prompt tokens leave after half of the layers."""
    answers = []
    for use in ("swiftkv", "swiftkv:weights=headstart-swiftkv,depth=4"):
        llm = LLM(max_model_len=256, use=[use], enable_prefix_caching=False)
        answers.append(llm.generate(PROMPT, GREEDY)[0].outputs[0].token_ids)
        counts = llm.engine.stats().methods["swiftkv"]
        assert counts["tokens of layer 3"] - counts["tokens of layer 4"] == len(llm.encode(PROMPT)) - 1
    assert answers[0] == answers[1]
    with pytest.raises(CheckpointError, match="was trained for the method swiftkv"):
        load_checkpoint("headstart-swiftkv")
