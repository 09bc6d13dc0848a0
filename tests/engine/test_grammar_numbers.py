"""Numbers at which the grammar library recurses without end, and ended the whole server, are refused."""

import json

import pytest

from headstart.engine.grammar import GrammarCompiler
from headstart.engine.params import StructuredOutputs
from headstart.errors import InvalidRequestError
from tests.server.scripted import END, byte_tokenizer


@pytest.mark.parametrize("number", [-(2**63), -(2**63) + 8])
def test_the_least_integers_are_refused(number: int) -> None:
    compiler = GrammarCompiler(byte_tokenizer(), [END], 272)
    for schema in ({"const": number}, {"properties": {"a": {"enum": [1, {"b": [number]}]}}}):
        for outputs in (
            StructuredOutputs(json=schema),
            StructuredOutputs(json=json.dumps(schema)),
            StructuredOutputs(grammar=f"start: %json {json.dumps(schema)}"),
        ):
            with pytest.raises(InvalidRequestError, match="too close"):
                compiler.compile(outputs)


@pytest.mark.parametrize("number", [2**63 - 1, -(2**62), -(10**17), -9, 2**80])
def test_others_are_not(number: int) -> None:
    GrammarCompiler(byte_tokenizer(), [END], 272).compile(StructuredOutputs(json={"const": number}))
