"""Sampling parameters refuse what makes no sense, naming the field."""

import pytest

from headstart import SamplingParams
from headstart.engine.params import StructuredOutputs
from headstart.errors import InvalidRequestError

BAD = [
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0.0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"n": 0}, "n"),
    ({"n": 3, "best_of": 2}, "best_of"),
    ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ({"repetition_penalty": 1e39}, "repetition_penalty"),
    ({"presence_penalty": 3.0}, "presence_penalty"),
    ({"frequency_penalty": -2.5}, "frequency_penalty"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {1: 101}}, "logit_bias"),
    ({"stop": ["a", ""]}, "stop"),
    ({"stop": [1]}, "stop"),
    ({"stop": 3}, "stop"),
    ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ({"min_tokens": 20, "max_tokens": 10}, "min_tokens"),
    ({"logprobs": -1}, "logprobs"),
    ({"seed": 0.5}, "seed"),
    ({"stop_token_ids": 5}, "stop_token_ids"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"output_kind": "all"}, "output_kind"),
]


@pytest.mark.parametrize(("fields", "name"), BAD, ids=str)
def test_bad_values_are_refused_by_name(fields, name):
    """One sentence that names the field; `.param` carries it for the HTTP error body."""
    with pytest.raises(InvalidRequestError, match=name) as error:
        SamplingParams(**fields)
    assert error.value.param == name and "\n" not in str(error.value)


def test_forms_are_normalised():
    """One stop string is a list of one; token ids given as text, as JSON has them, are numbers."""
    params = SamplingParams(stop="x", logit_bias={"5": 1})
    assert params.stop == ["x"] and params.logit_bias == {5: 1.0}


def test_structured_outputs_take_one_grammar():
    """None or two grammars are refused."""
    for fields in ({}, {"json": {}, "regex": "a"}):
        with pytest.raises(InvalidRequestError, match="exactly one"):
            StructuredOutputs(**fields)
