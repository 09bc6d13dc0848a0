"""What the rig reads: short excerpts of real text in several styles, as token shards, some of them held out."""

import hashlib
import random
import re
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import headstart
from headstart.checkpoints.tokenizer import Tokenizer
from headstart.errors import HeadstartError, did_you_mean
from headstart.texts import wild_wood
from headstart.training.data.bpe import DocumentEncoder, save_tokenizer, train_tokenizer
from headstart.training.data.readers import read_documents
from headstart.training.data.shards import ShardSource, ShardWriter
from headstart.training.documents import Document, TextDocument

EXCERPT_BYTES = 448
"""Longest excerpt: most of them fit into a row of 512 beside a line of metadata."""
PART_CHARACTERS = 8_192
"""At most so much of one work: many works in little text."""
TRAIN_BYTES, HELD_OUT_BYTES = 700_000, 32_000
HELD_OUT_EVERY = 8
"""One work in so many is held out."""
NOISE = 0.1


class RigError(HeadstartError):
    """A bench of the rig that cannot run as asked."""


@dataclass(frozen=True)
class RigSource:
    """Where the text of one style comes from.

    Attributes:
        path: below the data directory.
        own: the works that come with the package instead, where there is no data directory; None is none.
        noise: share of letters that are replaced.
    """

    path: str
    own: Callable[[], Iterable[tuple[str, str]]] | None = None
    noise: float = 0.0


def _own_novel() -> Iterator[tuple[str, str]]:
    yield "wild-wood", wild_wood().text


def _own_code() -> Iterator[tuple[str, str]]:
    root = Path(headstart.__file__).parent
    for path in sorted(root.rglob("*.py")):
        yield str(path.relative_to(root)), path.read_text(encoding="utf-8")


SOURCES = {
    "novels": RigSource("text/books-core.jsonl.xz", _own_novel),
    "noisy-novels": RigSource("text/books-core.jsonl.xz", _own_novel, noise=NOISE),
    "plays": RigSource("text/tinyshakespeare.txt.xz"),
    "speeches": RigSource("text/speeches-us.jsonl.xz"),
    "textbooks": RigSource("text/textbooks-openstax.jsonl.xz"),
    "reference": RigSource("text/docs-cpp.jsonl.xz"),
    "code": RigSource("code/code-python.jsonl.xz", _own_code),
}
"""The styles, by name."""

STANDARD = ("novels", "plays", "speeches", "textbooks", "reference", "code")


@dataclass(frozen=True)
class RigCorpus:
    """The shards of a bench.

    Attributes:
        directory: holds `tokenizer`, `train/NAME` and `held-out/NAME`.
        tokenizer: one token a byte, and two marks around a document.
        names: the sources, in the order asked for; without a data directory only those that come with the package.
        fingerprint: of all text, so that numbers of different corpora are not compared.
    """

    directory: Path
    tokenizer: Tokenizer
    names: tuple[str, ...]
    fingerprint: str

    def held_out(self, name: str) -> list[Document]:
        """The held-out documents of a source."""
        source = ShardSource(self.directory / "held-out" / name)
        return [source[i] for i in range(len(source))]

    def train(self, name: str) -> list[Document]:
        """The training documents of a source."""
        source = ShardSource(self.directory / "train" / name)
        return [source[i] for i in range(len(source))]


def byte_tokenizer() -> Tokenizer:
    """A tokenizer of 258 ids: two marks and every byte."""
    marks = ["<|begin|>", "<|end|>"]
    return train_tokenizer([], 256 + len(marks), marks, bos_token=marks[0], eos_token=marks[1], add_bos=True)


def build_corpus(
    directory: Path,
    names: Sequence[str] = STANDARD,
    data: Path | None = None,
    *,
    train_bytes: int = TRAIN_BYTES,
    held_out_bytes: int = HELD_OUT_BYTES,
) -> RigCorpus:
    """Write the shards of some sources. The same text gives the same shards.

    Works, not excerpts, are held out, and what is held out of one source is held out of its noisy copy.

    Args:
        directory: an empty one.
        names: keys of `SOURCES`.
        data: the directory that holds their files; None takes what comes with the package.
        train_bytes, held_out_bytes: at most so much text of each source.

    Raises:
        RigError: an unknown source, or none that can be had.
        DataError: a file that cannot be read.
    """
    for name in names:
        if name not in SOURCES:
            raise RigError(f"the rig has no source {name!r}{did_you_mean(name, SOURCES)}; it has: {', '.join(SOURCES)}")
    found = tuple(name for name in names if data is not None or SOURCES[name].own is not None)
    if not found:
        raise RigError(f"the sources {', '.join(names)} need the data directory: set HEADSTART_DATA")
    tokenizer = byte_tokenizer()
    save_tokenizer(tokenizer, directory / "tokenizer")
    encoder = DocumentEncoder(tokenizer)
    digest = hashlib.blake2b(digest_size=8)
    for name in found:
        train, held_out = _excerpts(name, data, train_bytes, held_out_bytes)
        if not train or not held_out:
            raise RigError(f"source {name!r} of the rig holds too little text; give more, or leave it out")
        for part, documents in (("train", train), ("held-out", held_out)):
            digest.update("".join(document.text for document in documents).encode())
            with ShardWriter(directory / part / name, tokenizer) as writer:
                writer.add_all(encoder.encode_documents(documents))
    return RigCorpus(directory, tokenizer, found, digest.hexdigest())


def _excerpts(
    name: str, data: Path | None, train_bytes: int, held_out_bytes: int
) -> tuple[list[TextDocument], list[TextDocument]]:
    """Excerpts to train on and held-out ones, of different works."""
    noise = SOURCES[name].noise
    train: list[TextDocument] = []
    held_out: list[TextDocument] = []
    room = {True: held_out_bytes, False: train_bytes}
    for count, (work, text) in enumerate(_works(name, data)):
        away = count % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        change = partial(_noisy, share=noise, rng=random.Random(work)) if noise else str
        for number, piece in enumerate(cut(text, EXCERPT_BYTES)):
            if room[away] > 0:
                room[away] -= len(piece.encode())
                (held_out if away else train).append(TextDocument.of(change(piece), f"{work}:{number}", source=name))
        if max(room.values()) <= 0:
            break
    return train, held_out


def _works(name: str, data: Path | None) -> Iterator[tuple[str, str]]:
    """Id and text of every work of a source, the long ones in parts; of a collection only each work's first part."""
    source = SOURCES[name]
    if data is None:
        assert source.own is not None
        works = list(source.own())
    else:
        works = ((document.id, document.text) for document in read_documents(data / source.path))
    single = ".txt" in source.path or (data is None and len(works) == 1)  # type: ignore[arg-type]
    for work, text in works:
        size = PART_CHARACTERS // 4 if single else PART_CHARACTERS
        starts = range(0, len(text) if single else 1, size)
        yield from ((f"{work}@{start}", text[start : start + size]) for start in starts)


def cut(text: str, size: int) -> Iterator[str]:
    """Excerpts of at most `size` bytes that begin and end with a paragraph, or with a line where one is longer."""
    held = ""
    for piece in re.split(r"(?<=\n)(?=[ \t]*\n)|(?<=\n\n)", text.replace("\r\n", "\n")):
        for part in _lines(piece, size):
            if len((held + part).encode()) > size and held.strip():
                yield held.strip("\n")
                held = ""
            held += part
    if held.strip():
        yield held.strip("\n")


def _lines(paragraph: str, size: int) -> Iterator[str]:
    """A paragraph whole, or by lines or words where it is longer than `size` bytes."""
    if len(paragraph.encode()) <= size:
        yield paragraph
        return
    held = ""
    for word in re.split(r"(?<=\n)|(?<= )", paragraph):
        if held and len((held + word).encode()) > size:
            yield held
            held = ""
        # Nothing of such length is a word; its end does not matter here.
        held += word[: size // 2]
    yield held


def _noisy(text: str, share: float, rng: random.Random) -> str:
    """The text with a share of its letters replaced."""
    return "".join(
        rng.choice(string.ascii_lowercase) if each.isalpha() and rng.random() < share else each for each in text
    )
