"""How single tokens read inside a text, as strings and as bytes."""

import re

from headstart.checkpoints.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"


class TokenTexts:
    """Texts of single tokens, such that those of an output put together are the output's text.

    A token decoded alone loses its leading space with many tokenizers, so it is decoded behind another one.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._before = tokenizer.encode("a", add_special_tokens=False)[-1:]
        self._skipped = len(self._decode(self._before))
        self._texts: dict[int, str] = {}

    def text(self, token_id: int) -> str:
        """The token's text; part of a character reads as U+FFFD."""
        if token_id not in self._texts:
            self._texts[token_id] = self._decode([*self._before, token_id])[self._skipped :]
        return self._texts[token_id]

    def data(self, token_id: int) -> bytes:
        """The token's bytes in UTF-8, which for part of a character are not its text's."""
        text = self.text(token_id)
        if REPLACEMENT not in text:
            return text.encode()
        piece = self._tokenizer.inner.id_to_token(token_id) or ""
        if byte := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece):
            return bytes([int(byte[1], 16)])
        if all(character in _BYTE_OF for character in piece):
            return bytes(_BYTE_OF[character] for character in piece)
        return text.encode()

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)


def _byte_of() -> dict[str, int]:
    """Byte-level tokenizers write each byte as a printable character: itself, or one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {chr(0x100 + position): byte for position, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | shifted


_BYTE_OF = _byte_of()
