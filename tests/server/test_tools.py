"""Tool calls in the Hermes and Llama 3 formats: offered, forced, read back, whole and streamed."""

import json
import random
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import pydantic_function_tool
from pydantic import BaseModel

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.engine.grammar import GrammarCompiler
from headstart.engine.params import StructuredOutputs
from headstart.server.messages import Tool
from headstart.server.tools.calls import CallDelta
from headstart.server.tools.format import CallParser, ToolFormat
from headstart.server.tools.hermes import HermesFormat
from headstart.server.tools.llama3 import Llama3Format
from tests.server.harness import Running, running
from tests.server.scripted import END, MARKERS, Script, byte_tokenizer, scripted_model

ADD = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/N"}, "b": {"$ref": "#/$defs/N"}},
    "required": ["a", "b"],
    "additionalProperties": False,
    "$defs": {"N": {"type": "integer", "minimum": 0, "maximum": 99}},
}
# Two functions whose schemas use the same name for different things.
SAY = ADD | {"$defs": {"N": {"enum": ["hi", "ho"]}}}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": ADD}},
    {"type": "function", "function": {"name": "say", "parameters": SAY}},
    {"type": "function", "function": {"name": "now"}},
]
ASK: list[Any] = [{"role": "user", "content": "What is 1 + 2?"}]
FORMATS: dict[str, ToolFormat] = {"hermes": HermesFormat(), "llama3": Llama3Format()}


def written(form: str, *calls: tuple[str, str]) -> str:
    """Calls as a model of that form writes them."""
    if form == "hermes":
        return "\n".join(f'<tool_call>\n{{"name": "{n}", "arguments": {a}}}\n</tool_call>' for n, a in calls)
    return "; ".join(f'{{"name": "{n}", "parameters": {a}}}' for n, a in calls)


def read(parser: CallParser, text: str, cuts: list[int]) -> tuple[str, list[tuple[str, str]]]:
    """What a parser makes of a text that comes in parts."""
    content, calls = "", []
    edges = [0, *sorted(cuts), len(text)]
    for start, end in pairwise(edges):
        for piece in parser.feed(text[start:end], final=False):
            content, calls = _with(piece, content, calls)
    for piece in parser.feed("", final=True):
        content, calls = _with(piece, content, calls)
    return content, calls


def _with(piece: str | CallDelta, content: str, calls: list[tuple[str, str]]) -> tuple[str, list[tuple[str, str]]]:
    if isinstance(piece, str):
        return content + piece, calls
    if piece.name is not None:
        assert piece.index == len(calls)
        return content, [*calls, (piece.name, piece.arguments)]
    assert piece.index == len(calls) - 1
    return content, [*calls[:-1], (calls[-1][0], calls[-1][1] + piece.arguments)]


NAMES = {"add", "say", "now"}
ODD = '{"a": "\\"}{[\\\\", "b": [{"c": "<tool_call>"}, -1.5e3, null]}'
CASES: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("hermes", written("hermes", ("add", '{"a": 1}')), "", [("add", '{"a": 1}')]),
    ("hermes", "I add.\n" + written("hermes", ("add", ODD), ("now", "{}")), "I add.", [("add", ODD), ("now", "{}")]),
    ("hermes", '<tool_call>{"arguments":{"a":1},"name":"add"}</tool_call>', "", [("add", '{"a":1}')]),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>\ndone', "\ndone", [("now", "{}")]),
    ("hermes", '<tool_call>{"id": 3, "name": "now", "arguments": null}</tool_call>', "", [("now", "{}")]),
    ("hermes", '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}}\n</tool_call>', "", [("add", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "now"}<tool_call>{"name": "now"}', "", [("now", "{}"), ("now", "{}")]),
    ("hermes", '<tool_call>\n{"name": "add", "arguments": {"a": 1', "", [("add", '{"a": 1')]),
    ("hermes", "a < b, <tool_ and <tool_call", "a < b, <tool_ and <tool_call", []),
    ("hermes", "<tool_call>none</tool_call> then", "<tool_call>none</tool_call> then", []),
    ("hermes", '<tool_call>{"name": 7, "arguments": {}}</tool_call>', None, []),  # type: ignore[list-item]
    ("hermes", "words \n ", "words \n ", []),
    ("llama3", written("llama3", ("add", ODD)), "", [("add", ODD)]),
    (
        "llama3",
        "\n<|python_tag|>" + written("llama3", ("add", "{}"), ("say", "{}")),
        "",
        [("add", "{}"), ("say", "{}")],
    ),
    ("llama3", '{"type": "function", "name": "now"}', "", [("now", "{}")]),
    ("llama3", '{"name": "Bob", "age": 3} is he', '{"name": "Bob", "age": 3} is he', []),
    ("llama3", '{"answer": {"name": "add"}}', '{"answer": {"name": "add"}}', []),
    ("llama3", ' the set {"name": "add"}', ' the set {"name": "add"}', []),
    ("llama3", "<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    ("llama3", "<|python", "<|python", []),
    ("llama3", '{"name": "ad', '{"name": "ad', []),
    ("llama3", '{"name": "add", "parameters": {"a": 1}} so', "so", [("add", '{"a": 1}')]),
]


@pytest.mark.parametrize(("form", "text", "content", "calls"), CASES, ids=range(len(CASES)))
def test_however_a_text_is_cut_its_calls_are_found(form, text, content, calls) -> None:
    rng = random.Random(0)
    for _ in range(60):
        parser = FORMATS[form].parser(NAMES, True)
        cuts = [rng.randint(0, len(text)) for _ in range(rng.choice((0, 1, 4, len(text))))]
        found = read(parser, text, cuts)
        assert found[1] == calls
        if content is not None:
            assert found[0].lstrip() == content.lstrip() if calls else found[0] == content


@given(
    st.sampled_from(sorted(FORMATS)),
    st.lists(
        st.sampled_from(
            [
                "<tool_call>",
                "</tool_call>",
                '{"name": "add", ',
                '"arguments": ',
                "{",
                "}",
                '"',
                "\\",
                ";",
                "x",
                "<",
                " ",
            ]
        )
    ),
    st.randoms(use_true_random=False),
)
def test_no_text_is_lost_without_a_call_nor_read_differently_in_parts(form, parts, rng) -> None:
    text = "".join(parts)
    whole = read(FORMATS[form].parser(NAMES, True), text, [])
    cuts = [rng.randint(0, len(text)) for _ in range(len(text))]
    assert read(FORMATS[form].parser(NAMES, True), text, cuts) == whole
    if not whole[1]:
        assert whole[0] == text


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("marked", [False, True])
def test_grammars_allow_calls_that_the_schemas_allow(form: str, marked: bool) -> None:
    tokenizer = byte_tokenizer(*(MARKERS if marked else ()))
    wrapped = Tokenizer(tokenizer, {}, {}, "test")
    compiler = GrammarCompiler(tokenizer, [END], wrapped.vocab_size)
    tools = [Tool.model_validate(tool) for tool in TOOLS]
    good = [("add", '{"a": 1, "b": 99}'), ("say", '{"a": "hi", "b": "ho"}'), ("now", '{"x": [1]}')]
    bad = [("add", '{"a": 1, "b": 100}'), ("say", '{"a": 1, "b": 2}'), ("other", "{}"), ("now", "3")]

    def allowed(answer: str, **how: bool) -> bool:
        grammar = FORMATS[form].grammar(tools, wrapped, **how)
        matcher = compiler.compile(StructuredOutputs(grammar=grammar))
        ids = [*tokenizer.encode(answer, add_special_tokens=False).ids, END]
        return all(matcher.accept(token) for token in ids)

    for text in (False, True):
        for several in (False, True):
            how = {"text": text, "several": several}
            assert all(allowed(written(form, call), **how) for call in good)
            assert not any(allowed(written(form, call), **how) for call in bad)
            assert allowed("plain words", **how) == allowed("", **how) == text
            if not text:
                assert allowed(written(form, *good), **how) == several


@pytest.fixture(scope="module", params=list(FORMATS))
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Running, Script, str]]:
    engine, script = scripted_model(tmp_path_factory.mktemp("models") / "scripted", request.param)
    with running(engine) as server:
        yield server, script, request.param
        server.wait_until_idle()


def create(server: Running, **body: Any) -> Any:
    return server.openai.chat.completions.create(
        **({"model": "scripted", "messages": ASK, "tools": TOOLS, "temperature": 0, "max_tokens": 200} | body)
    )


def streamed(chunks: Any) -> list[dict[str, Any]]:
    """The choices of a stream, put together as the client's documentation says."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for part in chunk.choices:
            choice = choices.setdefault(part.index, {"content": "", "calls": [], "reason": None})
            choice["content"] += part.delta.content or ""
            choice["reason"] = part.finish_reason or choice["reason"]
            for call in part.delta.tool_calls or ():
                if call.id:
                    assert call.index == len(choice["calls"])
                    choice["calls"].append((call.function.name, ""))
                name, arguments = choice["calls"][call.index]
                choice["calls"][call.index] = (name, arguments + (call.function.arguments or ""))
    return [choices[index] for index in sorted(choices)]


def whole(answer: Any) -> list[dict[str, Any]]:
    return [
        {
            "content": choice.message.content or "",
            "calls": [(c.function.name, c.function.arguments) for c in choice.message.tool_calls or ()],
            "reason": choice.finish_reason,
        }
        for choice in answer.choices
    ]


def test_calls_come_back_whole_and_streamed(model: tuple[Running, Script, str]) -> None:
    server, script, form = model
    script.lines = (written(form, ("add", '{"a": 1, "b": 2}'), ("now", "{}")), "Three, says the fox ☃.")
    answer = create(server, n=2)
    assert whole(answer) == [
        {"content": "", "calls": [("add", '{"a": 1, "b": 2}'), ("now", "{}")], "reason": "tool_calls"},
        {"content": "Three, says the fox ☃.", "calls": [], "reason": "stop"},
    ]
    assert answer.choices[0].message.content is None
    ids = [call.id for call in answer.choices[0].message.tool_calls]
    assert len(set(ids)) == 2
    chunks = list(create(server, n=2, stream=True))
    assert streamed(chunks) == whole(answer)
    # The arguments come as they are written, not all at once.
    assert sum(bool(c.choices[0].delta.tool_calls) for c in chunks) > 8
    assert whole(create(server, parallel_tool_calls=False))[0]["calls"] == [("add", '{"a": 1, "b": 2}')]
    cut = create(server, max_tokens=len(written(form, ("add", '{"a": 1'))) if form == "llama3" else 36)
    assert cut.choices[0].finish_reason == "length"
    assert cut.choices[0].message.tool_calls[0].function.arguments.startswith('{"a"')


def test_a_forced_call_is_one_whatever_the_model_would_say(model: tuple[Running, Script, str]) -> None:
    server, script, _ = model
    script.lines = ()
    for seed in range(3):
        named = {"type": "function", "function": {"name": "add"}}
        for choice in ("required", named):
            asked = {"tool_choice": choice, "seed": seed, "temperature": 1, "max_tokens": 400, "tools": TOOLS[:2]}
            answer = whole(create(server, **asked, parallel_tool_calls=False))[0]
            assert streamed(create(server, **asked, parallel_tool_calls=False, stream=True))[0] == answer
            assert answer["reason"] == "tool_calls"
            assert answer["content"] == ""
            ((name, arguments),) = answer["calls"]
            assert name == "add" if choice is named else name in ("add", "say")
            values = json.loads(arguments)
            assert set(values) == {"a", "b"}
            assert all(0 <= v <= 99 for v in values.values()) if name == "add" else set(values.values()) <= {"hi", "ho"}


class Add(BaseModel):
    a: int
    b: int


def test_strict_tools_hold_the_model_to_their_schemas(model: tuple[Running, Script, str]) -> None:
    server, script, form = model
    # The script asks for words where the schema wants numbers, and may say what it likes outside of calls.
    script.lines = (written(form, ("Add", '{"a": "x", "b": 2}')),)
    asked: Any = {"model": "scripted", "messages": ASK, "max_tokens": 200, "temperature": 0}
    tools: Any = [pydantic_function_tool(Add)]
    strict = tools[0]["function"]["parameters"]["properties"]
    for name in strict:
        strict[name] |= {"minimum": 0, "maximum": 99}
    parsed = server.openai.chat.completions.parse(**asked, tools=tools)
    (call,) = parsed.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, Add)
    script.lines = ("It is 3.",)
    assert server.openai.chat.completions.parse(**asked, tools=tools).choices[0].message.content == "It is 3."


def test_the_prompt_describes_tools_and_keeps_earlier_calls(model: tuple[Running, Script, str]) -> None:
    server, script, _ = model
    script.lines = ("Fine.",)
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1,"b":2}'}}
    turns = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "3"}]},
    ]

    def prompt(**body: Any) -> str:
        tokens = server.post("/tokenize", {"messages": turns, **body}).json()["tokens"]
        asked = {"messages": turns, "max_tokens": 9, **body}
        assert create(server, **asked).usage.prompt_tokens == len(tokens)
        return server.post("/detokenize", {"tokens": tokens, "skip_special_tokens": False}).json()["prompt"]

    described = prompt(tools=TOOLS)
    assert json.dumps(TOOLS) in described
    assert 'add|{"a": 1, "b": 2}' in described
    assert "tool c1: 3" in described
    assert "Adds." not in prompt(tools=TOOLS, tool_choice="none")


@pytest.mark.parametrize(
    ("body", "param", "phrase"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'web_search'"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "matches"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools", "several functions named 'add'"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice", '"required"'),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice", '"required"'),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "'x'"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "response_format", "together with tools"),
        ({"tools": TOOLS, "add_generation_prompt": False}, "add_generation_prompt", "tools"),
        ({"tools": TOOLS, "chat_template_kwargs": {"tools": []}}, "chat_template_kwargs", "cannot set tools"),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "foo"}}}],
                "tool_choice": "required",
            },
            "tools",
            "cannot be enforced",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "required"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [{"id": "1", "function": {"name": "f"}}]}]},
            "messages[0].tool_calls",
            "for the assistant",
        ),
    ],
)
def test_refusals_name_the_field(model: tuple[Running, Script, str], body: Any, param: str, phrase: str) -> None:
    response = model[0].post("/v1/chat/completions", {"messages": ASK} | body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert phrase in error["message"]


@pytest.mark.parametrize(("template", "phrase"), [("no tools", "no place"), ("another form", "not supported")])
def test_models_without_a_known_form_refuse_tools(tmp_path: Any, template: str, phrase: str) -> None:
    engine, _ = scripted_model(tmp_path / "model", template)
    with running(engine) as server:
        error = server.post("/v1/chat/completions", {"messages": ASK, "tools": TOOLS}).json()["error"]
        assert error["param"] == "tools"
        assert phrase in error["message"]
        spoken = server.post("/v1/chat/completions", {"messages": ASK, "tools": TOOLS, "tool_choice": "none"})
        assert spoken.status_code == 200
