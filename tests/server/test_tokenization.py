"""A method that tokenizes differently does so over HTTP too."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headstart import LLM, AsyncEngine, SamplingParams
from headstart.checkpoints.tokenizer import Tokenizer
from headstart.engine.seams import Tokenization
from headstart.methods.registry import MethodCard
from tests.server.harness import Running, running

MESSAGES = [{"role": "user", "content": "Once upon a time é"}]
RENDERED = "<s>user: Once upon a time é\nassistant:"


class Backwards(Tokenization):
    """Text is read from its end."""

    card = MethodCard("backwards", "test", None, True, "any", (), 0, "A test.", object, Tokenization.slots)

    def encode(self, text: str, tokenizer: Tokenizer, add_special_tokens: bool) -> list[int]:
        return tokenizer.encode(text[::-1], add_special_tokens)


@pytest.fixture(scope="module")
def backwards(checkpoint: Path) -> Iterator[Running]:
    engine = AsyncEngine.from_model(str(checkpoint), dtype="float32", use=[Backwards()])
    with running(engine) as server:
        yield server
        server.wait_until_idle()


def expected(llm: LLM, ids: list[int]) -> str:
    params = SamplingParams(temperature=0, max_tokens=20)
    return llm.generate([{"prompt_token_ids": ids}], params)[0].outputs[0].text


# The second is long enough to be tokenized in a thread.
@pytest.mark.parametrize("prompt", ["Once upon a time é", "a" * 1500 + " dog" * 900])
def test_prompts(backwards: Running, llm: LLM, prompt: str) -> None:
    ids = llm.tokenizer.encode(prompt[::-1])
    assert ids != llm.tokenizer.encode(prompt)
    assert backwards.post("/tokenize", {"prompt": prompt}).json()["tokens"] == ids
    bare = backwards.post("/tokenize", {"prompt": prompt, "add_special_tokens": False}).json()["tokens"]
    assert bare == llm.tokenizer.encode(prompt[::-1], add_special_tokens=False)
    if len(ids) < 400:
        asked: dict[str, Any] = {"prompt": prompt, "temperature": 0, "max_tokens": 20}
        answer = backwards.post("/v1/completions", asked).json()
        assert answer["choices"][0]["text"] == expected(llm, ids)
        assert answer["usage"]["prompt_tokens"] == len(ids)


def test_chats(backwards: Running, llm: LLM) -> None:
    ids = llm.tokenizer.encode(RENDERED[::-1], add_special_tokens=False)
    assert backwards.post("/tokenize", {"messages": MESSAGES}).json()["tokens"] == ids
    asked: dict[str, Any] = {"messages": MESSAGES, "temperature": 0, "max_tokens": 20}
    answer = backwards.post("/v1/chat/completions", asked).json()
    assert answer["choices"][0]["message"]["content"] == expected(llm, ids)
