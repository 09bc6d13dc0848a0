"""What is done to a prompt before it is read, and to logits before a token is drawn."""

from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

from torch import Tensor

from headstart.engine.seams.base import Seam

if TYPE_CHECKING:
    from headstart.checkpoints.tokenizer import Tokenizer
    from headstart.engine.request import Sequence


class LogitRule(Seam, ABC):
    """What is done to logits before sampling?"""

    slots = ("logit_rule",)

    @abstractmethod
    def apply(self, logits: Tensor, sequences: "Seq[Sequence]") -> Tensor:
        """`[N, V]` float32, one row per sequence → the same shape."""


class PromptRule(Seam, ABC):
    """What is done to a prompt before it is a prompt?"""

    slots = ("prompt_rule",)

    @abstractmethod
    def rewrite(self, token_ids: list[int]) -> list[int]:
        """The ids that the model reads instead."""


class Tokenization(Seam, ABC):
    """How does text become ids?"""

    slots = ("tokenization",)
    for_all = "a text is read before it is a request"

    @abstractmethod
    def encode(self, text: str, tokenizer: "Tokenizer", add_special_tokens: bool) -> list[int]:
        """The text's token ids; `add_special_tokens` is off for texts that bring their own, such as chats."""


class TokenizerIds(Tokenization):
    """As the checkpoint's `tokenizer.json` says: the default."""

    def encode(self, text: str, tokenizer: "Tokenizer", add_special_tokens: bool) -> list[int]:
        return tokenizer.encode(text, add_special_tokens)
