"""`headstart chat`: turns, the template, the cache between turns, what is dropped and what is interrupted."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from headstart import LLM, HeadstartError, SamplingParams
from headstart.checkpoints.tokenizer import Tokenizer
from headstart.cli.chat import Conversation
from headstart.engine.seams import Tokenization
from headstart.methods.registry import MethodCard

Run = Callable[..., Any]
GREEDY = SamplingParams(temperature=0, max_tokens=24)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM()


def ignore(_: str) -> None:
    """Show nothing."""


def test_each_line_is_a_turn_of_one_conversation(headstart: Run, llm: LLM) -> None:
    turns = ["Tell me a story about the king.", "What happened next?", "Go on."]
    ran = headstart("chat", "--json", "--temperature", "0", "--max-tokens", "24", stdin="\n".join(turns) + "\n\n")
    assert (ran.code, ran.err) == (0, "")
    replies = [json.loads(line) for line in ran.out.splitlines()]
    messages: list[dict[str, str]] = []
    for turn, reply in zip(turns, replies, strict=True):
        messages.append({"role": "user", "content": turn})
        assert reply["role"] == "assistant"
        assert reply["content"] == llm.chat(messages, GREEDY)[0].outputs[0].text
        messages.append({"role": "assistant", "content": reply["content"]})
    assert replies[0]["report"]["cached_tokens"] == 0
    for before, reply in itertools.pairwise(replies):
        # At most the page that was not full, and the turn's closing tokens, are read again.
        assert reply["report"]["cached_tokens"] >= before["report"]["prompt_tokens"] - 16


def test_text_goes_to_stdout_and_cost_to_stderr(headstart: Run) -> None:
    ran = headstart("chat", "--temperature", "0", "--max-tokens", "8", stdin="Hello!\n/help\n/exit\nnever\n")
    assert ran.code == 0
    assert ran.out.strip()
    assert ran.err.count("TTFT") == 1
    assert "prompt tokens cached" in ran.err
    assert "/reset" in ran.err


def test_reset_forgets_all_but_the_system_message(headstart: Run, llm: LLM) -> None:
    ran = headstart(
        "chat",
        *("--system", "You are a fox.", "--json", "--temperature", "0", "--max-tokens", "24"),
        stdin="Hello!\n/reset\nHello!\n",
    )
    first, second = (json.loads(line)["content"] for line in ran.out.splitlines())
    messages = [{"role": "system", "content": "You are a fox."}, {"role": "user", "content": "Hello!"}]
    assert first == second == llm.chat(messages, GREEDY)[0].outputs[0].text


def test_a_long_conversation_loses_its_oldest_turns_and_keeps_the_system_message() -> None:
    short = LLM(max_model_len=128)
    conversation = Conversation(short, SamplingParams(max_tokens=16, ignore_eos=True, seed=1), "Be kind.")
    dropped = 0
    for turn in range(8):
        result, lost = conversation.say(f"Turn {turn}: tell me more about the sea.", ignore)
        assert result is not None
        assert len(result.outputs[0].token_ids) == 16
        dropped += lost
        assert conversation.messages[0] == {"role": "system", "content": "Be kind."}
        assert [m["role"] for m in conversation.messages[1:]] == ["user", "assistant"] * (
            (len(conversation.messages) - 1) // 2
        )
        assert conversation.messages[-2]["content"].startswith(f"Turn {turn}")
    assert dropped > 0
    assert len(conversation.messages) + dropped == 17


def test_a_turn_that_is_too_long_is_refused_and_forgotten() -> None:
    conversation = Conversation(LLM(max_model_len=64), SamplingParams(max_tokens=8))
    with pytest.raises(HeadstartError, match="64 tokens"):
        conversation.say("word " * 200, ignore)
    assert conversation.messages == []
    assert conversation.say("Hello!", ignore)[0] is not None


def test_an_interrupted_reply_is_kept_as_far_as_it_came_and_frees_its_pages() -> None:
    llm = LLM(enable_prefix_caching=False)
    conversation = Conversation(llm, SamplingParams(max_tokens=200, ignore_eos=True, seed=0))
    said: list[str] = []

    def interrupt(piece: str) -> None:
        said.append(piece)
        if len(said) == 5:
            raise KeyboardInterrupt

    result, _ = conversation.say("Hello!", interrupt)
    assert result is None
    assert conversation.messages[-1] == {"role": "assistant", "content": "".join(said)}
    stats = llm.engine.stats()
    assert stats.num_running == stats.num_waiting == 0
    assert stats.pages_free == stats.pages_total


def test_a_method_that_tokenizes_differently_reads_the_conversation() -> None:
    class Backwards(Tokenization):
        """Text is read from its end."""

        card = MethodCard("backwards", "test", None, True, "any", (), 0, "A test.", object, Tokenization.slots)

        def encode(self, text: str, tokenizer: Tokenizer, add_special_tokens: bool) -> list[int]:
            return tokenizer.encode(text[::-1], add_special_tokens)

    llm = LLM(use=[Backwards()])
    conversation = Conversation(llm, GREEDY)
    rendered = llm.tokenizer.apply_chat_template([{"role": "user", "content": "Hello!"}])
    result, _ = conversation.say("Hello!", ignore)
    assert result is not None
    assert result.prompt_token_ids == llm.tokenizer.encode(rendered[::-1], add_special_tokens=False)


def test_a_model_without_a_chat_template_is_refused_with_a_sentence(headstart: Run, stories: str) -> None:
    ran = headstart("chat", "--model", stories, stdin="Hello!\n")
    assert ran.code == 2
    assert "no chat template" in ran.err
