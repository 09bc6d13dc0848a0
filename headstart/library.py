"""A library of documents on disk: cut into chunks, read once, and found by every server that uses its directory."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.engine.chunk_library import ChunkLibrary
from headstart.engine.disk_tier import CATALOGUE
from headstart.engine.params import SamplingParams
from headstart.errors import HeadstartError, did_you_mean

if TYPE_CHECKING:
    from headstart.engine.llm import LLM

# Documents may be many gigabytes of keys, and whoever adds them waits.
_WRITE_SECONDS = 24 * 3600.0
_SUFFIXES = (".txt", ".md", ".rst", ".html", ".csv", ".json", ".py")


@dataclass(frozen=True)
class Document:
    """What a catalogue says of one document.

    Attributes:
        name: the file's.
        digest: SHA-256 of its text.
        model: that has read it.
        use: the method that was in force, with its options.
        tokens: of all chunks.
        chunks: their texts, as requests must give them.
        files: pages of keys, relative to the library's directory.
    """

    name: str
    digest: str
    model: str
    use: str
    tokens: int
    chunks: tuple[str, ...]
    files: tuple[str, ...]


class Library:
    """The catalogue in a directory that a disk tier keeps pages of keys in.

    Args:
        directory: of both.

    Raises:
        HeadstartError: the catalogue cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._path = directory / CATALOGUE
        self.documents: dict[str, Document] = {}
        if self._path.exists():
            try:
                entries = json.loads(self._path.read_text("utf-8"))["documents"]
                found = [
                    Document(**{**each, "chunks": tuple(each["chunks"]), "files": tuple(each["files"])})
                    for each in entries
                ]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise HeadstartError(
                    f"the library's catalogue {self._path} cannot be read ({type(error).__name__}): delete it and add "
                    "the documents again"
                ) from None
            self.documents = {document.name: document for document in found}

    def add(
        self,
        llm: "LLM",
        texts: Iterable[tuple[str, str]],
        *,
        longest: int = 512,
        before: str = "",
        cache_salt: str | None = None,
        said: Callable[[str], None] = lambda name: None,
    ) -> list[Document]:
        """Read documents and write their keys down; the model must not be used any more.

        Args:
            llm: with a method that reuses chunks, and this directory as its disk tier.
            texts: (name, text) of each; a name that is there already is read anew.
            longest: tokens of a chunk (the paper of CacheBlend has 512).
            before: what stands before the documents in every prompt, for methods that read them behind it (`ape`).
            cache_salt: requests find them under the same salt alone.
            said: called with the name of each document before it is read.

        Raises:
            HeadstartError: no method reuses chunks, or a document has no text.
        """
        library = library_of(llm)
        made: list[Document] = []
        for name, text in texts:
            said(name)
            chunks = split(text, lambda part: len(llm.encode(part, add_special_tokens=False)), longest)
            if not chunks:
                raise HeadstartError(f"the document {name} has no text")
            library.record = []
            tokens = sum(_read(llm, chunk, before, cache_salt) for chunk in chunks)
            made.append(
                Document(
                    name=name,
                    digest=hashlib.sha256(text.encode()).hexdigest(),
                    model=llm.engine.checkpoint.name,
                    use=" ".join(map(str, llm.engine.watch.methods)),
                    tokens=tokens,
                    chunks=tuple(chunks),
                    files=tuple(dict.fromkeys(library.record)),
                )
            )
        library.record = None
        library.store.flush(_WRITE_SECONDS)
        self.documents |= {document.name: document for document in made}
        self._write()
        return made

    def remove(self, name: str) -> Document:
        """Forget a document, and delete the pages that no other one has.

        Raises:
            HeadstartError: there is no such document; the nearest name is suggested.
        """
        if name not in self.documents:
            raise HeadstartError(
                f"there is no document {name!r} in {self.directory}{did_you_mean(name, self.documents)}"
            )
        gone = self.documents.pop(name)
        kept = {file for document in self.documents.values() for file in document.files}
        for file in set(gone.files) - kept:
            self._place(file).unlink(missing_ok=True)
        self._write()
        return gone

    def on_disk(self, document: Document) -> tuple[int, int]:
        """How many pages of a document are there still, and their bytes."""
        sizes = [self._place(file).stat().st_size for file in document.files if self._place(file).is_file()]
        return len(sizes), sum(sizes)

    def _place(self, file: str) -> Path:
        """Where a page lies, which is never beyond the directory."""
        parts = Path(file).parts
        if len(parts) != 3 or ".." in parts or Path(file).is_absolute():
            raise HeadstartError(f"the library's catalogue {self._path} names {file!r}, which is no page of its own")
        return self.directory.joinpath(*parts)

    def _write(self) -> None:
        """Whole or not at all."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        entries = [asdict(document) for document in self.documents.values()]
        beside = self._path.with_name(f".{CATALOGUE}.{os.getpid()}")
        beside.write_text(json.dumps({"documents": entries}, indent=1), "utf-8")
        beside.replace(self._path)


def library_of(llm: "LLM") -> ChunkLibrary:
    """The chunks of a model's method.

    Raises:
        HeadstartError: none of its methods reuses chunks.
    """
    found = [getattr(each, "library", None) for each in llm.engine.stack.methods]
    library = next((each for each in found if isinstance(each, ChunkLibrary)), None)
    if library is None:
        raise HeadstartError("no method in force reuses chunks: give --use cacheblend or --use ape")
    return library


def split(text: str, count: Callable[[str], int], longest: int) -> list[str]:
    """A text in chunks of at most `longest` tokens, between paragraphs where they are short enough, else between
    words.

    Args:
        text: the document.
        count: tokens of a text.
        longest: tokens of a chunk; a single word may have more.
    """
    pieces: list[str] = []
    for paragraph in filter(str.strip, text.split("\n\n")):
        pieces += [paragraph] if count(paragraph) <= longest else _grouped(paragraph.split(), " ", count, longest)
    return _grouped(pieces, "\n\n", count, longest)


def _grouped(pieces: Sequence[str], glue: str, count: Callable[[str], int], longest: int) -> list[str]:
    """Neighbours together, as long as they fit."""
    found: list[str] = []
    group: list[str] = []
    size, between = 0, count(glue)
    for piece in pieces:
        tokens = count(piece) + between
        if group and size + tokens > longest:
            found.append(glue.join(group))
            group, size = [], 0
        group.append(piece)
        size += tokens
    return [*found, glue.join(group)] if group else found


def read_documents(paths: Sequence[Path]) -> list[tuple[str, str]]:
    """(name, text) of files, and of the text files in directories, by name.

    Raises:
        HeadstartError: a file that is not there, is no UTF-8 text, or a directory without text files.
    """
    found: dict[str, str] = {}
    for path in paths:
        files = sorted(each for each in path.rglob("*") if each.suffix in _SUFFIXES) if path.is_dir() else [path]
        if not files:
            raise HeadstartError(f"there are no text files in {path}: it looks for {', '.join(_SUFFIXES)}")
        for file in files:
            name = str(file.relative_to(path)) if path.is_dir() else file.name
            try:
                text = file.read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
                raise HeadstartError(f"the document {file} cannot be read: {reason}") from None
            if found.get(name, text) != text:
                raise HeadstartError(f"two documents are called {name}: add their directory, or rename one")
            found[name] = text
    return list(found.items())


def _read(llm: "LLM", chunk: str, before: str, cache_salt: str | None) -> int:
    """Let the engine read one chunk behind `before`; its tokens."""
    first = llm.encode(before, add_special_tokens=False) if before else []
    ids = llm.encode(chunk, add_special_tokens=False)
    prompt: dict[str, Any] = {
        "prompt_token_ids": [*first, *ids, ids[-1]],
        "chunks": [(len(first), len(first) + len(ids))],
    }
    params = SamplingParams(max_tokens=1, temperature=0, output_kind="final")
    engine = llm.engine
    engine.submit(engine.prepare("library", prompt, params, cache_salt))
    while engine.has_work:
        engine.step()
    return len(ids)
