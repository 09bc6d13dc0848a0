"""From `data.yaml` to a directory of token shards: read, clean, split, leave out duplicates, tokenise, write."""

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.training.data.bpe import DocumentEncoder, fingerprint, save_tokenizer, train_tokenizer
from headstart.training.data.dedup import Deduplicator
from headstart.training.data.errors import DataError
from headstart.training.data.generated import generate_documents
from headstart.training.data.readers import read_documents, read_records
from headstart.training.data.settings import DataSettings, SourceSettings, TrainTokenizer, resolve
from headstart.training.data.shards import ShardSource, ShardWriter
from headstart.training.data.split import HeldOutGuard, Split
from headstart.training.data.stages import apply_stages
from headstart.training.documents import TextDocument

REPORT = "report.json"
_SIGNATURES = "signatures.npy"
# What is prepared anew after a change of this code that changes what comes out.
_VERSION = 1


class Progress(Protocol):
    """Where the work tells how far it is."""

    def start(self, task: str) -> None:
        """A task begins, and the one before it has ended."""

    def advance(self, documents: int, characters: int) -> None:
        """So many more documents and characters are done."""


class Preparation:
    """The work of `headstart data prepare`: `OUT/tokenizer`, and per source `train`, `held-out` and `report.json`.

    Sources that are there already with the same settings, files and tokenizer are left as they are.

    Args:
        settings: what is wanted.
        base: what paths of the settings themselves (tokenizer, chat template) are relative to.
        root: what paths of data are relative to.
        out: the directory.
        progress: told how far it is.
        processes: for sources that code makes; None is one a core.
    """

    def __init__(
        self,
        settings: DataSettings,
        base: Path,
        root: Path,
        out: Path,
        progress: Progress,
        processes: int | None = None,
    ) -> None:
        self._settings, self._base, self._root, self._out = settings, base, root, out
        self._progress, self._processes = progress, processes
        self._files = {name: self._find(name, source) for name, source in settings.sources.items()}
        self._tokenizer: Tokenizer | None = None
        self._guard: HeldOutGuard | None = None

    def run(self) -> dict[str, dict[str, Any]]:
        """Do it.

        Returns:
            The report of each source; `fresh` says whether it was made now.

        Raises:
            DataError: data that is missing or bad, or an OUT that cannot be written; finished sources stay.
        """
        self._prepare_tokenizer()
        assert self._tokenizer is not None
        encoder = DocumentEncoder(self._tokenizer)
        duplicates = self._settings.near_duplicates
        deduplicator = None if duplicates is None else Deduplicator(**duplicates.model_dump())
        reports: dict[str, dict[str, Any]] = {}
        # Signatures of finished sources are read only if a later source needs them.
        unread: list[Path] = []
        before = ""
        for name, source in self._settings.sources.items():
            shared = deduplicator if source.deduplicate else None
            key = self._source_key(name, source, before)
            if shared is not None:
                before = key
            report = self._finished(name, key)
            if report is not None:
                reports[name] = report | {"fresh": False}
                unread += [self._out / name / _SIGNATURES] if shared is not None else []
                continue
            while shared is not None and unread:
                shared.restore(np.load(unread.pop(0)))
            reports[name] = self._prepare_source(name, source, key, encoder, shared) | {"fresh": True}
        return reports

    def _prepare_source(
        self, name: str, source: SourceSettings, key: str, encoder: DocumentEncoder, deduplicator: Deduplicator | None
    ) -> dict[str, Any]:
        directory = self._out / name
        (directory / REPORT).unlink(missing_ok=True)
        guard = self._filled_guard() if source.guard else None
        self._progress.start(name)
        drops: Counter[str] = Counter()
        known = 0 if deduplicator is None else len(deduplicator)
        documents: Iterable[TextDocument] = self._documents(name, source, drops)
        if source.held_out is not None:
            split = _split(source)
            documents = (document for document in documents if not split.is_held_out(document))
        if guard is not None:
            documents = guard(documents, drops)
        if deduplicator is not None:
            documents = deduplicator(documents, drops)
        report: dict[str, Any] = {"settings": key, "train": self._write(directory / "train", documents, encoder)}
        if source.held_out is not None:
            self._progress.start(f"{name}, held out")
            held = (d for d in self._documents(name, source, Counter()) if split.is_held_out(d))
            report["held_out"] = self._write(directory / "held-out", held, encoder)
        report["dropped"] = dict(drops)
        if deduplicator is not None:
            np.save(directory / _SIGNATURES, deduplicator.signatures(known))
        _write_json(directory / REPORT, report)
        return report

    def _write(self, directory: Path, documents: Iterable[TextDocument], encoder: DocumentEncoder) -> dict[str, int]:
        with ShardWriter(directory, encoder.tokenizer) as writer:
            writer.add_all(encoder.encode_documents(self._counted(documents)))
        source = ShardSource(directory)
        return {"documents": len(source), "tokens": source.tokens, "text_bytes": source.text_bytes}

    def _counted(self, documents: Iterable[TextDocument]) -> Iterator[TextDocument]:
        for document in documents:
            self._progress.advance(1, sum(len(span.text) for span in document.spans))
            yield document

    def _documents(self, name: str, source: SourceSettings, drops: Counter[str]) -> Iterator[TextDocument]:
        """The source's documents after its stages, held out or not."""
        if source.generate is not None:
            documents = generate_documents(source.generate, self._root, self._processes)
        else:
            documents = self._read(name, source, drops)
        return apply_stages(documents, source.build_stages(), drops)

    def _read(self, name: str, source: SourceSettings, drops: Counter[str]) -> Iterator[TextDocument]:
        for path in self._files[name]:
            # Files of one name in several directories must not give the same ids.
            prefix = path.relative_to(self._root).as_posix() if path.is_relative_to(self._root) else path.as_posix()
            if source.convert is None:
                yield from read_documents(
                    path,
                    text_field=source.text_field,
                    id_field=source.id_field,
                    separator=source.separator,
                    name=prefix,
                    drops=drops,
                )
                continue
            convert = resolve(source.convert)
            for where, id, record in read_records(path, name=prefix):
                yield from _converted(convert, source.convert, where, id, record, drops)

    def _filled_guard(self) -> HeldOutGuard:
        if self._guard is None:
            self._guard = HeldOutGuard(**self._settings.guard.model_dump())
            for name, source in self._settings.sources.items():
                if source.held_out is not None:
                    self._progress.start(f"{name}, split")
                    split = _split(source)
                    for document in self._counted(self._documents(name, source, Counter())):
                        if split.is_held_out(document):
                            self._guard.add(document)
        return self._guard

    def _prepare_tokenizer(self) -> None:
        wanted, directory = self._settings.tokenizer, self._out / "tokenizer"
        if wanted.path is not None:
            self._tokenizer = Tokenizer.from_directory(self._base / wanted.path)
            key = fingerprint(self._tokenizer)
        else:
            assert wanted.train is not None
            key = _hash([wanted.model_dump(mode="json"), self._trained_on(wanted.train), self._template(wanted.train)])
        if _read_json(directory / REPORT).get("settings") == key:
            self._tokenizer = Tokenizer.from_directory(directory)
            return
        if wanted.train is not None:
            self._tokenizer = self._train_tokenizer(wanted.train)
        assert self._tokenizer is not None
        max_length = None if wanted.train is None else wanted.train.max_length
        save_tokenizer(self._tokenizer, directory, max_length)
        _write_json(directory / REPORT, {"settings": key, "fingerprint": fingerprint(self._tokenizer)})

    def _train_tokenizer(self, wanted: TrainTokenizer) -> Tokenizer:
        self._progress.start("tokenizer")
        return train_tokenizer(
            self._texts(wanted),
            wanted.vocab_size,
            wanted.special_tokens,
            bos_token=wanted.bos_token,
            eos_token=wanted.eos_token,
            add_bos=wanted.add_bos,
            chat_template=self._template(wanted),
        )

    def _texts(self, wanted: TrainTokenizer) -> Iterator[str]:
        """What the tokenizer learns from: a share of the documents, never a held-out one."""
        sample = Split(wanted.fraction, seed=1)
        for name in self._tokenizer_sources(wanted):
            source = self._settings.sources[name]
            split = _split(source)
            for document in self._counted(self._documents(name, source, Counter())):
                if sample.is_held_out(document) and not split.is_held_out(document):
                    yield from (span.text for span in document.spans)

    def _tokenizer_sources(self, wanted: TrainTokenizer) -> list[str]:
        sources = self._settings.sources
        if wanted.sources is None:
            return [name for name, source in sources.items() if source.generate is None]
        for name in wanted.sources:
            if name not in sources:
                raise DataError(f"the tokenizer is to be trained on source {name!r}, which does not exist")
        return list(wanted.sources)

    def _trained_on(self, wanted: TrainTokenizer) -> list[str]:
        return [self._reading_key(name) for name in self._tokenizer_sources(wanted)]

    def _template(self, wanted: TrainTokenizer) -> str | None:
        if wanted.chat_template is None:
            return None
        path = self._base / wanted.chat_template
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"the chat template {path} cannot be read: {error}") from None

    def _find(self, name: str, source: SourceSettings) -> list[Path]:
        patterns = [source.path] if isinstance(source.path, str) else source.path or ()
        found: list[Path] = []
        for pattern in patterns:
            path = self._root / pattern
            # A plain name first, since it may hold characters that mean something in patterns.
            matches = [path] if path.is_file() else sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
            files = [match for match in matches if match.is_file() and match not in found]
            if not files:
                raise DataError(f"source {name}: there is no file {path}; correct the path, or give another --root")
            found += files
        return found

    def _finished(self, name: str, key: str) -> dict[str, Any] | None:
        """The report of a source that is there already, as these settings make it."""
        report = _read_json(self._out / name / REPORT)
        if report.get("settings") != key:
            return None
        for part in shard_parts(report):
            ShardSource(self._out / name / part)
        return report

    def _source_key(self, name: str, source: SourceSettings, before: str) -> str:
        """Changes with everything that a source's shards depend on."""
        assert self._tokenizer is not None
        parts: list[Any] = [_VERSION, self._reading_key(name), fingerprint(self._tokenizer)]
        if source.deduplicate and self._settings.near_duplicates is not None:
            parts += ["after", before, self._settings.near_duplicates.model_dump()]
        if source.guard:
            held = [each for each, other in self._settings.sources.items() if other.held_out is not None]
            parts += ["guard", [self._reading_key(each) for each in held], self._settings.guard.model_dump()]
        return _hash(parts)

    def _reading_key(self, name: str) -> str:
        source = self._settings.sources[name]
        stats = [(path.as_posix(), path.stat()) for path in self._files[name]]
        files = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
        called = [source.convert] if source.convert else [source.generate.call] if source.generate else []
        code = [_code_key(each) for each in called]
        return _hash([name, source.model_dump(mode="json"), files, str(self._root) if source.generate else "", code])


def _split(source: SourceSettings) -> Split:
    """Which of a source's documents are held out; none if the settings say nothing."""
    return Split(0.0) if source.held_out is None else Split(**source.held_out.model_dump())


def _converted(
    convert: Any, name: str, where: str, id: str, record: Any, drops: Counter[str]
) -> Iterator[TextDocument]:
    try:
        found = convert(record, id)
        documents = [found] if isinstance(found, TextDocument) else list(found or ())
    except Exception as error:
        raise DataError(f"{where}: {name} fails: {type(error).__name__}: {error}") from error
    if not documents:
        drops["not converted"] += 1
    for document in documents:
        if not isinstance(document, TextDocument):
            raise DataError(f"{where}: {name} gives a {type(document).__name__} instead of a TextDocument")
        if any(span.text for span in document.spans):
            yield document
        else:
            drops["empty"] += 1


def _code_key(call: str) -> str:
    """Changes with the source code of a function's package."""
    resolve(call)
    path = Path(sys.modules[call.partition(":")[0]].__file__ or "")
    files = sorted(path.parent.glob("*.py")) if (path.parent / "__init__.py").is_file() else [path]
    return _hash([(each.name, each.read_text(encoding="utf-8")) for each in files if each.is_file()])


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=12).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    beside = path.with_name(f".{path.name}")
    try:
        beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None


def shard_parts(report: dict[str, Any]) -> list[str]:
    """The directories of token shards that a source's report speaks of."""
    return ["train", "held-out"] if "held_out" in report else ["train"]


def read_reports(out: Path) -> dict[str, dict[str, Any]]:
    """The reports of the sources of a prepared directory, by name.

    Raises:
        DataError: there are none.
    """
    found = {path.parent.name: _read_json(path) for path in sorted(out.glob(f"*/{REPORT}"))}
    reports = {name: report for name, report in found.items() if "train" in report}
    if not reports:
        raise DataError(f"{out} holds no prepared data; make it with `headstart data prepare`")
    return reports
