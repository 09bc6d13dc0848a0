"""The server under load: which model it has, what it accepts, and how its requests are written."""

import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from headstart.errors import did_you_mean
from headstart.evaluation.load.client import Client, ConnectionFailed
from headstart.evaluation.load.prompts import WORDS, Prompts, one_token_words
from headstart.evaluation.load.settings import LoadError, LoadSettings

# Fields beyond OpenAI's that these servers take. Outputs then have exactly the wanted length, every token has some
# text, and no run finds prompts of an earlier one in the cache.
_OWN_FIELDS = {
    "headstart": ("ignore_eos", "skip_special_tokens", "cache_salt"),
    "vllm": ("ignore_eos", "skip_special_tokens", "cache_salt"),
}
_COMMON_FIELDS = ("ignore_eos",)

Tokenize = Callable[[str], Awaitable[list[int]]]


@dataclass(frozen=True)
class Target:
    """What is known of a server.

    Attributes:
        model: name of the model.
        owner: the software, as the list of models says it.
        max_model_len: longest prompt plus output in tokens, if the server says so.
        exact: whether the methods in force keep the model's distribution, if the server says so.
        extras: fields of a request beyond OpenAI's.
    """

    model: str
    owner: str = ""
    max_model_len: int | None = None
    exact: bool | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    def body(self, prompt: list[int] | str, output_tokens: int) -> bytes:
        """A completion request: greedy, streamed, with the token counts at the end."""
        return json.dumps(
            {
                "model": self.model,
                "prompt": prompt,
                "max_tokens": output_tokens,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
                **self.extras,
            },
            separators=(",", ":"),
        ).encode()

    def check_fits(self, input_tokens: int, output_tokens: int, settings: LoadSettings) -> None:
        """Refuse a load whose longest request the model cannot take.

        Raises:
            LoadError: with the options that make it fit.
        """
        longest, whole = self.max_model_len, input_tokens + output_tokens
        if longest is None or whole <= longest:
            return
        if settings.trace is None:
            hint = "choose shorter inputs and outputs"
        else:
            room = max(1, longest // 4)
            scale = longest / whole * settings.length_scale * 0.99
            hint = f"scale its lengths by {scale:.2g} or cut them to {longest - room} in and {room} out"
        raise LoadError(
            f"the longest request has {input_tokens} tokens in and {output_tokens} out, more than the {longest} "
            f"that {self.model} takes; {hint}"
        )

    def to_json(self) -> dict[str, Any]:
        """For a header."""
        return asdict(self)


async def meet(client: Client, settings: LoadSettings) -> Target:
    """Ask a server what it is.

    Raises:
        LoadError: nobody answers, it is no such server, or it has no such model.
    """
    try:
        status, body = await client.whole("GET", "/v1/models")
    except ConnectionFailed as error:
        raise LoadError(
            f"no server answers at {client.url} ({error}); start one with `headstart serve`, or correct the address"
        ) from None
    if status in (401, 403):
        raise LoadError(f"the server at {client.url} wants an API key; give it with --api-key")
    try:
        models = {str(model["id"]): model for model in json.loads(body)["data"]}
    except (ValueError, KeyError, TypeError):
        models = {}
    if status != 200 or not models:
        raise LoadError(f"{client.url} is no OpenAI-compatible server: /v1/models gives HTTP {status} and no model")
    name = settings.model or next(iter(models))
    if name not in models:
        near = did_you_mean(name, models) or f"; it has {', '.join(models)}"
        raise LoadError(f"the server at {client.url} has no model {name!r}{near}")
    entry = models[name]
    owner, longest = str(entry.get("owned_by") or ""), entry.get("max_model_len")
    values = {"ignore_eos": True, "skip_special_tokens": False, "cache_salt": f"load-{time.time_ns()}"}
    return Target(
        model=name,
        owner=owner,
        max_model_len=longest if isinstance(longest, int) else None,
        exact=entry.get("exact"),
        extras={key: values[key] for key in _OWN_FIELDS.get(owner, _COMMON_FIELDS)},
    )


async def make_prompts(client: Client, target: Target, settings: LoadSettings) -> Prompts:
    """Prompts in a form that the server takes.

    Raises:
        LoadError: the server's vocabulary is not known.
    """
    if settings.vocab is not None:
        return Prompts(range(settings.vocab), settings.seed)
    tokens = await _tokenizer(client, target)

    async def count(text: str) -> int:
        return len(await tokens(text))

    if settings.text:
        return Prompts(await one_token_words(count), settings.seed, count)
    return Prompts(sorted(set(await tokens(" ".join(WORDS)))), settings.seed)


async def _tokenizer(client: Client, target: Target) -> Tokenize:
    """The server's tokenizer, whose special tokens come with every text."""

    async def of_vllm(text: str) -> list[int]:
        return await _tokenize(client, {"model": target.model, "prompt": text})

    async def of_llama_cpp(text: str) -> list[int]:
        return await _tokenize(client, {"content": text, "add_special": True})

    for form in (of_vllm, of_llama_cpp):
        with suppress(LoadError):
            await form("the")
            return form
    raise LoadError(
        f"the server at {client.url} has no /tokenize that is known here; give the size of its vocabulary with --vocab"
    )


async def _tokenize(client: Client, body: dict[str, Any]) -> list[int]:
    try:
        status, answer = await client.whole("POST", "/tokenize", body)
        tokens = json.loads(answer)["tokens"]
    except (ConnectionFailed, ValueError, KeyError, TypeError) as error:
        raise LoadError(f"/tokenize does not work: {error}") from None
    if status != 200 or not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise LoadError(f"/tokenize gives HTTP {status} and no list of tokens")
    return tokens
