"""Chat templates against Transformers on templates in the styles of published models, and the sandbox."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.errors import CheckpointError, InvalidRequestError
from tests.checkpoints.tiny_tokenizer import write_tokenizer

CHATML = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
    {%- if message.role == 'system' and loop.first %}{% continue %}{% endif %}
    {%- set ns.last = loop.index0 %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content | default('', true) }}
    {%- for call in message.tool_calls or [] %}
        {{- '\\n<tool_call>' + ({'name': call.function.name, 'arguments': call.function.arguments} | tojson) }}
        {{- '</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
INSTRUCT = """{{ bos_token }}{% for message in messages %}
{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if message['role'] == 'user' %}[INST] {{ message['content'] | trim }} [/INST]{% else %}
 {{ message['content'] }}{{ eos_token }}
{% endif %}
{% endfor %}
"""
HEADERS = """{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
<|start|>system

Today is {{ date_string }}.
    {%- if tools is not none and tools %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {%- endif %}
{%- for message in messages %}
    {%- if message.content is string %}
        {{- '<|start|>' + message.role + '\\n\\n' + message.content | trim + '<|eot|>' }}
    {%- else %}
        {{- '<|start|>' + message.role }}
        {%- for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant\\n\\n' }}{% endif %}
"""
TRAINING = """{% for m in messages %}{% if m.role == 'assistant' %}A: {% generation %}{{ m.content }}{{ eos_token }}
{% endgeneration %}{% else %}U: {{ m.content }}
{% endif %}{% if loop.index > 8 %}{% break %}{% endif %}{% endfor %}"""
TEMPLATES = {"chatml": CHATML, "instruct": INSTRUCT, "headers": HEADERS, "training": TRAINING}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'what\'s <outside> & "above"? – naïve',
            "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": []},
        },
    }
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Zürich", "days": [1, 2.5]}}}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "  hello <there> & 'friend' "}],
    "turns": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello\n"},
        {"role": "user", "content": "日本語 🎉 {{ 7 * 7 }}"},
    ],
    "system": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
    "tools": [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "rain"},
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
    "long": [{"role": "user", "content": str(turn)} for turn in range(12)],
}


def with_template(directory: Path, template: Any, name: str = "chat_template") -> Tokenizer:
    write_tokenizer(directory, **{name: template})
    return Tokenizer.from_directory(directory)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_equal_transformers(name: str, conversation: str, tmp_path: Path) -> None:
    ours = with_template(tmp_path, TEMPLATES[name])
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    messages = CONVERSATIONS[conversation]
    for options in (
        {},
        {"add_generation_prompt": False},
        {"tools": TOOLS},
        {"enable_thinking": False, "date_string": "1 Jan 2025"},
    ):
        wanted = {"add_generation_prompt": True} | options
        try:
            expected = theirs.apply_chat_template(messages, tokenize=False, **wanted)
        except Exception:
            with pytest.raises(InvalidRequestError):
                ours.apply_chat_template(messages, **options)
            continue
        assert ours.apply_chat_template(messages, **options) == expected


def test_refusal_of_the_template_is_said(tmp_path: Path) -> None:
    tokenizer = with_template(tmp_path, INSTRUCT)
    with pytest.raises(InvalidRequestError, match="refuses these messages: System role not supported") as caught:
        tokenizer.apply_chat_template(CONVERSATIONS["system"])
    assert caught.value.param == "messages"


def test_today(tmp_path: Path) -> None:
    prompt = with_template(tmp_path, HEADERS).apply_chat_template(CONVERSATIONS["one"])
    assert datetime.now().strftime("%b %Y") in prompt


def test_places_where_templates_stand(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    tokenizer = with_template(tmp_path, named)
    assert tokenizer.chat_template == "D"
    assert tokenizer.apply_chat_template([]) == "D"
    assert tokenizer.apply_chat_template([], tools=TOOLS) == "T"
    assert tokenizer.apply_chat_template([], chat_template="{{ messages | length }}") == "0"
    (tmp_path / "chat_template.jinja").write_text("F")
    extra = tmp_path / "additional_chat_templates"
    extra.mkdir()
    (extra / "tool_use.jinja").write_text("E")
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.apply_chat_template([]) == "F"
    assert tokenizer.apply_chat_template([], tools=TOOLS) == "E"


def test_no_template(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.chat_template is None
    with pytest.raises(CheckpointError, match=r"has no chat template; add chat_template.jinja"):
        tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("template", [7, ["x"], [{"name": "default"}]])
def test_template_field_of_the_wrong_kind(template: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"chat_template in .* must be a string or a list"):
        with_template(tmp_path, template)


def test_template_that_cannot_be_parsed(tmp_path: Path) -> None:
    tokenizer = with_template(tmp_path, "{% for x in %}")
    with pytest.raises(CheckpointError, match="cannot be parsed"):
        tokenizer.apply_chat_template([])


def test_template_that_fails(tmp_path: Path) -> None:
    for template in ("{{ messages[0].content + 1 }}", "{{ 1 / 0 }}", "{{ nothing.at.all }}"):
        with pytest.raises(InvalidRequestError, match="fails on these messages"):
            with_template(tmp_path, template).apply_chat_template([{"role": "user", "content": "x"}])


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ raise_exception.__globals__['__builtins__']['open']('/etc/passwd').read() }}",
    "{{ strftime_now.__globals__ }}",
    "{{ lipsum.__globals__['os'].system('true') }}",
    "{{ cycler.__init__.__globals__.os.environ }}",
    "{{ ''['format']('{0.__class__}', 1).__class__.__mro__ }}",
    "{{ ('{0.__class__.__init__.__globals__}' | attr('format'))(raise_exception) }}",
    "{{ messages | attr('__class__') | attr('__mro__') }}",
    "{% set ns = namespace() %}{{ ns.__init__.__globals__ }}",
    "{{ dict.__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='system') }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.getcwd() }}",
    "{{ range(10 ** 9) | list }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_templates_cannot_leave_the_sandbox(template: str, tmp_path: Path) -> None:
    tokenizer = with_template(tmp_path, template)
    messages = [{"role": "user", "content": "hi"}]
    try:
        leaked = tokenizer.apply_chat_template(messages)
    except (InvalidRequestError, CheckpointError):
        leaked = ""
    assert leaked == ""
    assert messages == [{"role": "user", "content": "hi"}]


def test_messages_must_be_plain_values(tmp_path: Path) -> None:
    tokenizer = with_template(tmp_path, "{{ messages[0].content.write_text('x') }}")
    with pytest.raises(InvalidRequestError, match="plain JSON values"):
        tokenizer.apply_chat_template([{"role": "user", "content": tmp_path / "written"}])
    assert not (tmp_path / "written").exists()


def test_messages_must_be_objects(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="every message must be an object"):
        with_template(tmp_path, CHATML).apply_chat_template(["hi"])


def test_caller_messages_are_left_alone(tmp_path: Path) -> None:
    messages = CONVERSATIONS["tools"]
    before = json.dumps(messages)
    with_template(tmp_path, CHATML).apply_chat_template(messages, tools=TOOLS)
    assert json.dumps(messages) == before


def test_variables_may_have_any_name(tmp_path: Path) -> None:
    """Names that Python's own arguments bear are variables like all others."""
    tokenizer = with_template(tmp_path, "{{ self_name }}{{ messages[0].content }}")
    variables = {"self": 1, "self_name": "x"}
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], **variables)
    assert prompt == "xhi"
