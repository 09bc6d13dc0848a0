"""Grammars against an independent reading of the schema: walks stay valid, and valid texts are walks."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from headstart.engine.grammar import GrammarCompiler, Matcher, allowed_bitmask, apply_bitmask_
from headstart.engine.params import StructuredOutputs
from headstart.errors import InvalidRequestError

VOCAB, EOS, FIRST_BYTE = 512, 2, 3


@pytest.fixture(scope="module")
def tokenizer(stories: str) -> Tokenizer:
    return Tokenizer.from_file(str(Path(stories) / "tokenizer.json"))


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, EOS, VOCAB)


def leaves() -> st.SearchStrategy[dict[str, Any]]:
    numbers = st.tuples(st.integers(-1000, 1000), st.integers(0, 500))
    return st.one_of(
        st.just({"type": "boolean"}),
        st.just({"type": "null"}),
        st.just({"type": "integer"}),
        st.just({"type": "number"}),
        numbers.map(lambda p: {"type": "integer", "minimum": p[0], "maximum": p[0] + p[1]}),
        st.tuples(st.integers(0, 4), st.integers(0, 6)).map(
            lambda p: {"type": "string", "minLength": p[0], "maxLength": p[0] + p[1]}
        ),
        st.lists(st.text('abcé\n"', max_size=4) | st.integers(-5, 5), min_size=1, max_size=4, unique=True).map(
            lambda values: {"enum": values}
        ),
    )


def objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    @st.composite
    def build(draw: st.DrawFn) -> dict[str, Any]:
        properties = draw(st.dictionaries(st.text("xyz_ 1é", min_size=1, max_size=5), inner, max_size=4))
        required = [key for key in properties if draw(st.booleans())]
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }

    return build()


def arrays(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(inner, st.integers(0, 2), st.integers(0, 3)).map(
        lambda p: {"type": "array", "items": p[0], "minItems": p[1], "maxItems": p[1] + p[2]}
    )


def unions(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.lists(inner, min_size=1, max_size=3).map(lambda choices: {"anyOf": choices})


SCHEMAS = st.recursive(leaves(), lambda s: objects(s) | arrays(s) | unions(s), max_leaves=8)


def conforms(value: Any, schema: dict[str, Any]) -> bool:
    """An independent reading of the subset of JSON Schema that `SCHEMAS` draws from."""
    if "anyOf" in schema:
        return any(conforms(value, choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return any(type(value) is type(choice) and value == choice for choice in schema["enum"])
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match schema["type"]:
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "number":
            return number
        case "integer":
            low, high = schema.get("minimum", -np.inf), schema.get("maximum", np.inf)
            whole = isinstance(value, int) or (number and value.is_integer())
            return number and whole and low <= value <= high
        case "string":
            return isinstance(value, str) and schema["minLength"] <= len(value) <= schema["maxLength"]
        case "array":
            sized = isinstance(value, list) and schema["minItems"] <= len(value) <= schema["maxItems"]
            return sized and all(conforms(item, schema["items"]) for item in value)
        case _:
            properties = schema["properties"]
            known = isinstance(value, dict) and set(schema["required"]) <= set(value) <= set(properties)
            return known and all(conforms(item, properties[key]) for key, item in value.items())


def instances(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "anyOf" in schema:
        return st.one_of([instances(choice) for choice in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema["type"]:
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case "number":
            return st.floats(-1e6, 1e6) | st.integers(-(10**6), 10**6)
        case "integer":
            return st.integers(schema.get("minimum", -(10**9)), schema.get("maximum", 10**9))
        case "string":
            letters = st.characters(codec="utf-8", exclude_characters="\x7f")
            return st.text(letters, min_size=schema["minLength"], max_size=schema["maxLength"])
        case "array":
            items = instances(schema["items"])
            return st.lists(items, min_size=schema["minItems"], max_size=schema["maxItems"])
        case _:
            strategies = {key: instances(value) for key, value in schema["properties"].items()}
            required = {key: strategies[key] for key in schema["properties"] if key in schema["required"]}
            optional = {key: value for key, value in strategies.items() if key not in required}
            return st.fixed_dictionaries(required, optional=optional).map(
                lambda found: {key: found[key] for key in strategies if key in found}
            )


def allowed_tokens(matcher: Matcher) -> np.ndarray:
    row = torch.zeros((VOCAB + 31) // 32, dtype=torch.int32)
    matcher.fill(row)
    return np.flatnonzero(np.unpackbits(row.numpy().view(np.uint8), bitorder="little"))


def text_of(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    """The bytes of the tokens, read from the vocabulary itself."""
    data = b""
    for token_id in token_ids:
        piece = tokenizer.id_to_token(token_id)
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
        data += bytes([int(byte[1], 16)]) if byte else piece.replace("\u2581", " ").encode()
    return data.decode()


def random_walk(tokenizer: Tokenizer, matcher: Matcher, rng: np.random.Generator) -> str:
    """Random allowed tokens until the end; past 40 tokens those that close things are preferred."""
    closing = [EOS, *(FIRST_BYTE + ord(c) for c in '"]},')]
    walked: list[int] = []
    for step in range(3000):
        allowed = allowed_tokens(matcher)
        preferred = [t for t in closing if t in allowed] if step > 40 else []
        token = int(preferred[0] if preferred else rng.choice(allowed))
        assert matcher.accept(token)
        if token == EOS:
            return text_of(tokenizer, walked)
        walked.append(token)
    raise AssertionError("the walk does not end")


@settings(max_examples=150, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 2**32))
def test_every_walk_is_json_that_the_schema_accepts(
    tokenizer: Tokenizer, compiler: GrammarCompiler, schema: dict[str, Any], seed: int
) -> None:
    matcher = compiler.compile(StructuredOutputs(json=schema))
    text = random_walk(tokenizer, matcher, np.random.default_rng(seed))
    assert matcher.finished
    assert conforms(json.loads(text), schema), text


@settings(max_examples=150, deadline=None)
@given(data=st.data(), indent=st.sampled_from([None, 2, 4]))
def test_every_usual_layout_of_a_valid_value_is_a_walk(
    compiler: GrammarCompiler, data: st.DataObject, indent: int | None
) -> None:
    schema = data.draw(SCHEMAS)
    text = json.dumps(data.draw(instances(schema)), ensure_ascii=False, indent=indent)
    matcher = compiler.compile(StructuredOutputs(json=json.dumps(schema)))
    for byte in text.encode():
        assert matcher.accept(FIRST_BYTE + byte), text
    assert EOS in allowed_tokens(matcher)


def test_white_space_cannot_go_on_for_ever(compiler: GrammarCompiler) -> None:
    matcher = compiler.compile(StructuredOutputs(json_object=True))
    matcher.accept(FIRST_BYTE + ord("{"))
    spaces = [FIRST_BYTE + ord(c) for c in "\n\t\r "]
    for _ in range(64):
        blank = [t for t in spaces if t in allowed_tokens(matcher)]
        if not blank:
            return
        matcher.accept(blank[0])
    raise AssertionError("64 blanks in a row are still allowed")


@pytest.mark.parametrize(
    ("outputs", "valid"),
    [
        (StructuredOutputs(regex=r"[a-f]{2}-\d{1,3}"), lambda s: re.fullmatch(r"[a-f]{2}-\d{1,3}", s)),
        (StructuredOutputs(grammar='start: "yes" | "no" ("," start)?'), lambda s: re.match(r"yes|no", s)),
        (StructuredOutputs(json_object=True), lambda s: isinstance(json.loads(s), dict)),
    ],
)
def test_the_other_kinds(tokenizer: Tokenizer, compiler: GrammarCompiler, outputs: Any, valid: Any) -> None:
    for seed in range(20):
        assert valid(random_walk(tokenizer, compiler.compile(outputs), np.random.default_rng(seed)))


def test_matchers_of_one_grammar_are_independent(compiler: GrammarCompiler) -> None:
    first = compiler.compile(StructuredOutputs(regex="[ax][by]"))
    assert first.accept(FIRST_BYTE + ord("a"))
    second = compiler.compile(StructuredOutputs(regex="[ax][by]"))
    assert FIRST_BYTE + ord("a") in allowed_tokens(second)
    assert not second.accept(FIRST_BYTE + ord("b"))
    assert not second.finished
    with pytest.raises(InvalidRequestError, match="structured_outputs cannot be used"):
        second.check()
    assert allowed_tokens(second).tolist() == [EOS]
    assert first.accept(FIRST_BYTE + ord("b"))
    assert first.finished
    assert allowed_tokens(first).tolist() == [EOS]


@pytest.mark.parametrize("vocab_size", [500, 512, 513, 600])
def test_a_vocabulary_of_another_size_than_the_tokenizers(tokenizer: Tokenizer, vocab_size: int) -> None:
    matcher = GrammarCompiler(tokenizer, [EOS, 1], vocab_size).compile(StructuredOutputs(regex="a*"))
    logits = torch.randn(3, vocab_size)
    before = logits.clone()
    apply_bitmask_(logits, [2, 0], allowed_bitmask([matcher, matcher]))
    finite = torch.isfinite(logits)
    allowed = finite[0].nonzero().flatten().tolist()
    assert {1, EOS, FIRST_BYTE + ord("a")} <= set(allowed)
    assert all(token < 512 for token in allowed)
    assert torch.equal(finite[0], finite[2])
    assert finite[1].all()
    assert torch.equal(logits[finite], before[finite])


@given(data=st.data())
def test_the_mask_is_applied_bit_for_bit(data: st.DataObject) -> None:
    vocab = data.draw(st.integers(1, 100))
    allowed = np.array(
        data.draw(st.lists(st.lists(st.booleans(), min_size=vocab, max_size=vocab), min_size=1, max_size=4))
    )
    padded = np.zeros((len(allowed), (vocab + 31) // 32 * 32), dtype=bool)
    padded[:, :vocab] = allowed
    words = torch.from_numpy(np.packbits(padded, axis=1, bitorder="little").view(np.int32))
    logits = torch.zeros(len(allowed), vocab)
    apply_bitmask_(logits, torch.arange(len(allowed)), words)
    assert np.array_equal(torch.isfinite(logits).numpy(), allowed)


@pytest.mark.parametrize(
    "outputs",
    [
        StructuredOutputs(json={"type": "foo"}),
        StructuredOutputs(json={"properties": 3}),
        StructuredOutputs(json={"type": "string", "pattern": "("}),
        StructuredOutputs(json={"$ref": "#/nowhere"}),
        StructuredOutputs(json={"type": "integer", "minimum": 5, "maximum": 2}),
        StructuredOutputs(json={"not": {"type": "string"}}),
        StructuredOutputs(json="{nope"),
        StructuredOutputs(json="[1]"),
        StructuredOutputs(regex="("),
        StructuredOutputs(grammar="start: nowhere"),
        StructuredOutputs(grammar=""),
        StructuredOutputs(json={"$ref": "#"}),
        StructuredOutputs(grammar='start: start "a"'),
    ],
)
def test_what_cannot_be_compiled_is_refused_in_one_sentence(compiler: GrammarCompiler, outputs: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"in structured_outputs cannot be used: .") as caught:
        compiler.compile(outputs)
    assert caught.value.param == "structured_outputs"
    assert "\n" not in str(caught.value)


def test_a_grammar_that_takes_too_long_to_compile_is_refused(tokenizer: Tokenizer) -> None:
    hasty = GrammarCompiler(tokenizer, EOS, VOCAB, compile_seconds=1e-6)
    large = StructuredOutputs(json={"enum": [f"value {i} " * 20 for i in range(20000)]})
    with pytest.raises(InvalidRequestError, match="seconds to compile") as caught:
        hasty.compile(large)
    assert caught.value.param == "structured_outputs"
    assert GrammarCompiler(tokenizer, EOS, VOCAB).compile(large)


@pytest.mark.parametrize("number", [600, 2000])
@pytest.mark.parametrize("required", [False, True])
def test_a_schema_of_many_properties_is_followed(
    tokenizer: Tokenizer, compiler: GrammarCompiler, number: int, required: bool
) -> None:
    properties = {f"field_{i}": {"type": "integer"} for i in range(number)}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    matcher = compiler.compile(StructuredOutputs(json=schema | {"required": list(properties) if required else []}))
    text = '{"field_0":1,"field_1":2'
    for byte in text.encode():
        assert matcher.accept(FIRST_BYTE + byte) and not matcher.finished
    matcher.check()
    assert (FIRST_BYTE + ord("}") in allowed_tokens(matcher)) != required


def test_a_dead_end_is_not_the_end(compiler: GrammarCompiler) -> None:
    """After the first letter no text leads to the end, which only the next mask finds out."""
    matcher = compiler.compile(StructuredOutputs(grammar='start: "a" /[^\\x00-\\U0010FFFF]/'))
    assert matcher.accept(FIRST_BYTE + ord("a"))
    assert allowed_tokens(matcher).tolist() == [EOS] and not matcher.finished
    with pytest.raises(InvalidRequestError, match="nothing can complete it"):
        matcher.check()
