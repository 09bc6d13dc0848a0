"""The tokenizer of a checkpoint directory, with its special tokens and its chat template."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as InnerTokenizer

from headstart.checkpoints.chat_template import ChatTemplate, read_templates
from headstart.checkpoints.files import read_json
from headstart.errors import CheckpointError, InvalidRequestError

# From this many characters on, encoding takes long enough for other threads to notice.
_LONG_TEXT = 4096
_PROBE = "Once upon a time"


class Tokenizer:
    """Text to ids and back, as `tokenizer.json` says.

    Attributes:
        inner: the `tokenizers.Tokenizer`.
        bos_token, eos_token: special tokens as text; None when there are none.
        bos_token_id, eos_token_id: their ids.
        special_tokens: all named special tokens as text, for templates.
    """

    def __init__(
        self, inner: InnerTokenizer, special_tokens: dict[str, str], templates: dict[str, str], source: str
    ) -> None:
        self.inner = inner
        self.special_tokens = special_tokens
        self.bos_token = special_tokens.get("bos_token")
        self.eos_token = special_tokens.get("eos_token")
        self.bos_token_id = None if self.bos_token is None else inner.token_to_id(self.bos_token)
        self.eos_token_id = None if self.eos_token is None else inner.token_to_id(self.eos_token)
        self._source = source
        self._templates = {name: ChatTemplate(text, source) for name, text in templates.items()}

    @classmethod
    def from_directory(cls, directory: Path) -> "Tokenizer":
        """Read `tokenizer.json`, `tokenizer_config.json` and the chat template of a directory.

        Raises:
            CheckpointError: `tokenizer.json` is absent, or a file cannot be read.
        """
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(
                f"{directory} has no tokenizer.json; make one with "
                "transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR), or pass token ids and "
                "skip_tokenizer_init=True"
            )
        try:
            inner = InnerTokenizer.from_file(str(path))
            # Files may carry the padding and truncation of their training, which would change prompts.
            inner.no_padding()
            inner.no_truncation()
            # What a file says of special tokens is first looked at when a text gets them.
            inner.decode(inner.encode(_PROBE).ids)
        except BaseException as error:
            if not (isinstance(error, Exception) or _is_panic(error)):
                raise
            raise CheckpointError(f"{path} cannot be read as a tokenizer: {' '.join(str(error).split())}") from None
        config_path = directory / "tokenizer_config.json"
        config = read_json(config_path) if config_path.is_file() else {}
        map_path = directory / "special_tokens_map.json"
        special = (read_json(map_path) if map_path.is_file() else {}) | config
        return cls(inner, _special_tokens(special, directory), read_templates(directory, config), str(directory))

    @property
    def vocab_size(self) -> int:
        """One more than the highest id, added tokens included."""
        return max(self.inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def text_vocab_size(self) -> int:
        """One more than the highest id that ordinary text can become: special tokens left out."""
        special = {token_id for token_id, token in self._added_tokens().items() if token.special}
        ids = self.inner.get_vocab(with_added_tokens=True).values()
        return max((token_id for token_id in ids if token_id not in special), default=-1) + 1

    @property
    def chat_template(self) -> str | None:
        """The source of the default chat template; None when there is none."""
        return self._templates["default"].text if "default" in self._templates else None

    @property
    def tool_template(self) -> str | None:
        """The source of the template for chats with tools; None when there is no template."""
        found = self._templates.get("tool_use") or self._templates.get("default")
        return None if found is None else found.text

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Text to ids, with the special tokens that `tokenizer.json` adds around a text, if wanted.

        Raises:
            InvalidRequestError: the text holds half of a surrogate pair, as bytes read with the wrong encoding do.
        """
        try:
            if len(text) < _LONG_TEXT:
                return self.inner.encode(text, add_special_tokens=add_special_tokens).ids
            # Of the tokenizer's ways to encode, the one for batches lets other threads run meanwhile.
            return self.inner.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        except TypeError:
            raise InvalidRequestError("the prompt is not valid Unicode text", "prompt") from None
        except BaseException as error:
            if not _is_panic(error):
                raise
            raise InvalidRequestError(f"the model's tokenizer fails on this prompt: {error}", "prompt") from None

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """Ids to text."""
        return self.inner.decode(ids, skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self,
        messages: list[dict[str, Any]],
        /,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """Messages to the prompt that the model was trained on; encode it without adding special tokens.

        Args:
            messages: dicts with `role` and `content`.
            tools: JSON-schema descriptions of functions that the model may call.
            add_generation_prompt: end with the opening of the assistant's turn.
            **kwargs: further variables of the template; `chat_template` gives the template itself.

        Raises:
            CheckpointError: there is no template, or it cannot be parsed.
            InvalidRequestError: the template refuses these messages.
        """
        text = kwargs.pop("chat_template", None)
        template = ChatTemplate(text, self._source) if text else self._template(with_tools=bool(tools))
        variables = self.special_tokens | kwargs
        return template.render(messages, tools=tools, add_generation_prompt=add_generation_prompt, **variables)

    def _template(self, with_tools: bool) -> ChatTemplate:
        if with_tools and "tool_use" in self._templates:
            return self._templates["tool_use"]
        if "default" not in self._templates:
            raise CheckpointError(
                f"the tokenizer in {self._source} has no chat template; add chat_template.jinja there, "
                "or send a plain prompt instead of messages"
            )
        return self._templates["default"]

    def _added_tokens(self) -> dict[int, AddedToken]:
        return self.inner.get_added_tokens_decoder()


def _is_panic(error: BaseException) -> bool:
    """Whether it is how the library's inner language ends: no `Exception`, so that it would end the engine too."""
    return type(error).__name__ == "PanicException"


def _special_tokens(config: dict[str, Any], directory: Path) -> dict[str, str]:
    """The entries `bos_token` and the like; each is a string or an object with the string in `content`.

    Raises:
        CheckpointError: one is half of a surrogate pair, which no text holds.
    """
    names = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    found: dict[str, str] = {}
    for name in names:
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            if any("\ud800" <= character <= "\udfff" for character in token):
                raise CheckpointError(f"{name} of the tokenizer in {directory} is not valid Unicode text")
            found[name] = token
    return found
