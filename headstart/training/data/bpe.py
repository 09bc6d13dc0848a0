"""Byte-level BPE: training a tokenizer, and turning documents of text into documents of tokens."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as InnerTokenizer

from headstart.checkpoints.token_texts import TokenTexts
from headstart.checkpoints.tokenizer import Tokenizer
from headstart.training.data.errors import DataError
from headstart.training.documents import Document, Span, TextDocument

# The split of GPT-4 and Llama 3, with every digit alone: contractions, words with one leading mark, digits,
# punctuation with its line ends, line ends, trailing and other space.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)
_BYTES = 256


class SpecialSpan(Span):
    """A span that spells special tokens, such as `SpecialSpan("<|user|>", trained=False)`.

    The text of a plain `Span` never becomes a special token, whatever it says.
    """


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    special_tokens: Sequence[str] = ("<|endoftext|>",),
    *,
    bos_token: str | None = None,
    eos_token: str | None = None,
    chat_template: str | None = None,
    add_bos: bool = False,
    max_token_length: int = 24,
    progress: bool = False,
) -> Tokenizer:
    """A byte-level BPE over `texts`, which can write any bytes; the same texts give the same tokenizer.

    Args:
        texts: what it is trained on.
        vocab_size: number of ids, special tokens included.
        special_tokens: they get the first ids, in this order.
        bos_token: the special token that opens a text; None is none.
        eos_token: the special token that ends a text; None is the first special token.
        chat_template: Jinja source, kept beside the tokenizer.
        add_bos: put `bos_token` before every text that is encoded with special tokens.
        max_token_length: bytes of the longest token; keeps runs of spaces and rules from filling the vocabulary.
        progress: show the progress of `tokenizers`.

    Raises:
        DataError: too few ids, special tokens that do not fit, or too little text.
    """
    special = _checked_special(special_tokens, bos_token, eos_token, add_bos)
    if vocab_size < _BYTES + len(special):
        raise DataError(
            f"a byte-level vocabulary with {len(special)} special tokens needs at least {_BYTES + len(special)} ids, "
            f"and {vocab_size} were asked for; raise vocab_size"
        )
    inner = InnerTokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=max_token_length,
        show_progress=progress,
    )
    inner.train_from_iterator(texts, trainer)
    if (found := inner.get_vocab_size()) < vocab_size:
        raise DataError(
            f"the text gives only {found} of the {vocab_size} tokens asked for; lower vocab_size or give more text"
        )
    if add_bos and bos_token is not None:
        inner.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single=f"{bos_token} $A",
            pair=f"{bos_token} $A {bos_token} $B",
            special_tokens=[(bos_token, inner.token_to_id(bos_token))],
        )
    names = {"bos_token": bos_token, "eos_token": eos_token or special[0]}
    templates = {} if chat_template is None else {"default": chat_template}
    return Tokenizer(inner, {name: token for name, token in names.items() if token}, templates, "the new tokenizer")


def _checked_special(tokens: Sequence[str], bos: str | None, eos: str | None, add_bos: bool) -> list[str]:
    special = list(tokens)
    if not special or "" in special or len(set(special)) < len(special):
        raise DataError("special_tokens must be one or more different strings that are not empty")
    for name, token in (("bos_token", bos), ("eos_token", eos)):
        if token is not None and token not in special:
            raise DataError(f"{name} {token!r} is not among the special_tokens; add it there")
    if add_bos and bos is None:
        raise DataError("add_bos needs a bos_token")
    return special


def save_tokenizer(tokenizer: Tokenizer, directory: Path, max_length: int | None = None) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and the chat template, as Transformers reads them.

    Args:
        tokenizer: what `train_tokenizer` gave.
        directory: made if it is absent.
        max_length: tokens of the longest input, for `model_max_length`.
    """
    config: dict[str, Any] = dict(tokenizer.special_tokens)
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if max_length is not None:
        config["model_max_length"] = max_length
    files = {
        "tokenizer.json": tokenizer.inner.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
    }
    if tokenizer.chat_template is not None:
        files["chat_template.jinja"] = tokenizer.chat_template
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            _write_atomically(directory / name, text)
    except OSError as error:
        raise DataError(f"the tokenizer cannot be written to {directory}: {error.strerror}") from None


def _write_atomically(path: Path, text: str) -> None:
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(beside).chmod(0o644)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def fingerprint(tokenizer: Tokenizer) -> str:
    """Sixteen hexadecimal digits that tell tokenizers apart that give other ids for some text.

    What is put around a text (BOS, padding, truncation) does not count, since documents are encoded without.
    """
    content = json.loads(tokenizer.inner.to_str())
    parts = {key: content.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


def token_byte_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """Bytes of text that each token stands for, int64 `[V]`; 0 for special tokens.

    Summed over a text's tokens this is the text's length in UTF-8, so that losses become bits per byte.
    """
    texts = TokenTexts(tokenizer)
    special = {i for i, token in tokenizer.inner.get_added_tokens_decoder().items() if token.special}
    lengths = np.zeros(tokenizer.vocab_size, np.int64)
    for token_id in tokenizer.inner.get_vocab(with_added_tokens=True).values():
        if token_id not in special:
            lengths[token_id] = len(texts.data(token_id))
    return lengths


class DocumentEncoder:
    """Documents of text to documents of tokens, span by span.

    Nothing is added around a text, and what a plain span says never becomes a special token; a `SpecialSpan`
    must consist of special tokens alone.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        # A copy of its own: the switch below would change the prompts of whoever shares the tokenizer.
        self._plain = InnerTokenizer.from_str(tokenizer.inner.to_str())
        self._plain.no_padding()
        self._plain.no_truncation()
        self._plain.encode_special_tokens = True
        self._special = {i for i, token in tokenizer.inner.get_added_tokens_decoder().items() if token.special}
        self._special_ids: dict[str, np.ndarray] = {}

    def encode(self, text: str) -> list[int]:
        """A plain text to ids."""
        return self._plain.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def encode_documents(
        self, documents: Iterable[TextDocument], batch_characters: int = 1 << 22
    ) -> Iterator[Document]:
        """The documents as tokens, in order, encoded in batches of about `batch_characters` on all cores.

        Raises:
            DataError: a special span holds something else, or a text is not valid Unicode.
        """
        batch: list[TextDocument] = []
        characters = 0
        for document in documents:
            batch.append(document)
            characters += sum(len(span.text) for span in document.spans)
            if characters >= batch_characters:
                yield from self._encode_batch(batch)
                batch, characters = [], 0
        yield from self._encode_batch(batch)

    def _encode_batch(self, documents: list[TextDocument]) -> Iterator[Document]:
        plain = [span.text for d in documents for span in d.spans if not isinstance(span, SpecialSpan)]
        try:
            encoded = iter(self._plain.encode_batch_fast(plain, add_special_tokens=False))
        except TypeError:
            bad = next(d.id for d in documents if not is_unicode(d.text))
            raise DataError(f"document {bad} holds half of a surrogate pair; write it as valid UTF-8") from None
        for document in documents:
            pieces = [
                self._special_span(span.text, document.id)
                if isinstance(span, SpecialSpan)
                else np.array(next(encoded).ids, np.int32)
                for span in document.spans
            ]
            trained = None
            if not all(span.trained for span in document.spans):
                flags = [span.trained for span in document.spans]
                trained = np.repeat(np.array(flags, bool), [len(piece) for piece in pieces])
            token_ids = pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, np.int32), *pieces])
            yield Document(token_ids, trained, document.id, document.metadata)

    def _special_span(self, text: str, document: str) -> np.ndarray:
        if text not in self._special_ids:
            ids = self.tokenizer.inner.encode(text, add_special_tokens=False).ids
            if not ids or not self._special.issuperset(ids):
                raise DataError(
                    f"document {document} has a special span {text[:40]!r} that is not made of the tokenizer's special "
                    "tokens alone; add them to the tokenizer or use a plain span"
                )
            self._special_ids[text] = np.array(ids, np.int32)
        return self._special_ids[text]


def encode_documents(
    documents: Iterable[TextDocument], tokenizer: Tokenizer, batch_characters: int = 1 << 22
) -> Iterator[Document]:
    """`DocumentEncoder(tokenizer).encode_documents(...)`, for a single use."""
    return DocumentEncoder(tokenizer).encode_documents(documents, batch_characters)


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: half of a surrogate pair, as broken JSON escapes give, cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
