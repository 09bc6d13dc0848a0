"""`headstart data`: from YAML to shards, without leaks, resumable, with a sentence for every mistake."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.cli.data import app
from headstart.errors import InvalidRequestError
from headstart.training.data.errors import DataError
from headstart.training.data.generated import generate_documents
from headstart.training.data.prepare import Preparation, read_reports
from headstart.training.data.settings import GenerateSettings, read_settings
from headstart.training.data.shards import ShardSource
from headstart.training.documents import TextDocument

MAKER = """
import os
from headstart.errors import InvalidRequestError
from headstart.training.documents import Span, TextDocument

def make(index, seed, word="word", fail=None):
    if fail == index:
        raise InvalidRequestError("there is no such word")
    if fail == -index:
        raise KeyError("oops")
    return TextDocument((Span(f"{word} {seed} {index}", False), Span(" yes")), f"g{index}")

def die(index, seed):
    os._exit(1)

def talk(record, id):
    if not record["turns"]:
        return None
    return TextDocument(tuple(Span(turn) for turn in record["turns"]), id)
"""


class Quiet:
    def __init__(self) -> None:
        self.tasks: list[str] = []

    def start(self, task: str) -> None:
        self.tasks.append(task)

    def advance(self, documents: int, characters: int) -> None:
        pass


def sentence(number: int) -> str:
    values = ((number * 37 + i * i) % 997 for i in range(60))
    return " ".join("".join("abcdefghij"[int(digit)] for digit in str(value)) for value in values)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    books = [{"text": sentence(i), "author": f"a{i % 10}", "title": f"t{i}"} for i in range(60)]
    (tmp_path / "books.jsonl").write_text("".join(json.dumps(book) + "\n" for book in books))
    # The other source holds copies of some of the first one's documents.
    copies = [{"text": sentence(i).upper() if i < 30 else sentence(100 + i)} for i in range(60)]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps(copy) + "\n" for copy in copies))
    (tmp_path / "maker_of_tests.py").write_text(MAKER)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("maker_of_tests", None)


SETTINGS: dict[str, Any] = {
    "tokenizer": {"train": {"vocab_size": 300, "special_tokens": ["<e>", "<u>"], "bos_token": "<e>", "max_length": 64}},
    "sources": {
        "books": {"path": "books.jsonl", "held_out": {"fraction": 0.3, "by": "author"}, "tags": {"kind": "book"}},
        "web": {"path": ["web.jsonl"], "stages": [{"normalise": {}}, {"length": {"min_characters": 10}}]},
    },
}


def change(**changes: Any) -> dict[str, Any]:
    """The settings with some values replaced; `a__b` is b in a."""
    settings = json.loads(json.dumps(SETTINGS))
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = settings
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return settings


def prepare(root: Path, settings: dict[str, Any], **more: Any) -> tuple[dict[str, dict[str, Any]], Quiet]:
    (root / "data.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    quiet = Quiet()
    reports = Preparation(read_settings(root / "data.yaml"), root, root, root / "out", quiet, **more).run()
    return reports, quiet


def texts(root: Path, part: str) -> dict[str, str]:
    tokenizer = Tokenizer.from_directory(root / "out" / "tokenizer")
    source = ShardSource(root / "out" / part)
    source.verify()
    source.check_tokenizer(tokenizer)
    found = [source[i] for i in range(len(source))]
    return {d.id: tokenizer.decode(d.token_ids.tolist(), skip_special_tokens=False) for d in found}


def test_nothing_held_out_and_no_duplicate_reaches_training(root: Path) -> None:
    reports, _ = prepare(root, SETTINGS)
    train, held, web = (texts(root, part) for part in ("books/train", "books/held-out", "web/train"))
    assert len(train) + len(held) == 60 and 6 <= len(held) <= 30
    assert {f"books.jsonl:{i + 1}" for i in range(60)} == set(train) | set(held)
    shards = [ShardSource(root / "out" / part) for part in ("books/train", "books/held-out")]
    authors = [{source[i].metadata["author"] for i in range(len(source))} for source in shards]
    assert not authors[0] & authors[1]
    seen = {text.lower() for text in train.values()}
    assert not seen & set(held.values())
    assert not {text.lower() for text in web.values()} & (seen | set(held.values()))
    copies = sum(int(name.split(":")[1]) <= 30 for name in held)
    assert reports["web"]["dropped"] == {"holds held-out text": copies, "near-duplicate": 30 - copies}
    assert reports["web"]["train"]["documents"] == len(web) == 30
    assert reports["books"]["train"]["text_bytes"] == sum(len(text) for text in train.values())
    assert ShardSource(root / "out" / "books/train")[0].metadata["kind"] == "book"


def test_finished_sources_are_left_as_they_are(root: Path) -> None:
    first, _ = prepare(root, SETTINGS)
    again, quiet = prepare(root, SETTINGS)
    assert quiet.tasks == []
    assert [report["fresh"] for report in again.values()] == [False, False]
    assert {name: report | {"fresh": True} for name, report in again.items()} == first

    # The second source alone, with the duplicates of the first one still known.
    changed, quiet = prepare(root, change(sources__web__stages=[{"normalise": {}}]))
    assert [report["fresh"] for report in changed.values()] == [False, True]
    assert changed["web"]["dropped"] == first["web"]["dropped"]
    assert "tokenizer" in quiet.tasks

    path = root / "out" / "books" / "train" / "tokens-00000.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match="damaged"):
        prepare(root, SETTINGS)


def test_a_stopped_run_goes_on_with_the_source_it_was_at(root: Path) -> None:
    good = (root / "web.jsonl").read_text()
    (root / "web.jsonl").write_text(good + "{\n")
    tokenizer = {"train": SETTINGS["tokenizer"]["train"] | {"sources": ["books"]}}
    with pytest.raises(DataError, match=r"web\.jsonl, line 61 is not JSON"):
        prepare(root, change(tokenizer=tokenizer))
    assert list(read_reports(root / "out")) == ["books"]
    assert not list((root / "out" / "web").glob("*"))
    (root / "web.jsonl").write_text(good)
    reports, _ = prepare(root, change(tokenizer=tokenizer))
    assert [report["fresh"] for report in reports.values()] == [False, True]


def test_other_settings_make_a_source_anew(root: Path) -> None:
    prepare(root, SETTINGS)
    for settings, fresh in (
        (change(sources__books__tags={"kind": "novel"}), [True, True]),
        (change(sources__books__held_out={"fraction": 0.5}), [True, True]),
        (change(guard={"threshold": 0.9}), [True, True]),
    ):
        reports, _ = prepare(root, settings)
        assert [report["fresh"] for report in reports.values()] == fresh


def test_an_existing_tokenizer_is_used(root: Path) -> None:
    prepare(root, SETTINGS)
    (root / "out" / "tokenizer").rename(root / "mine")
    reports, quiet = prepare(root, change(tokenizer={"path": "mine"}))
    assert not any(report["fresh"] for report in reports.values())
    assert quiet.tasks == []
    assert Tokenizer.from_directory(root / "out" / "tokenizer").vocab_size == 300


def test_generated_documents_do_not_depend_on_the_processes(root: Path) -> None:
    generate = {"call": "maker_of_tests:make", "count": 40, "seed": 3, "options": {"word": "in {root}"}}
    settings = change(sources__made={"generate": generate, "deduplicate": False})
    written = []
    for processes in (1, 2):
        prepare(root, settings, processes=processes)
        written.append(texts(root, "made/train"))
        (root / "out" / "made" / "report.json").unlink()
    assert written[0] == written[1]
    assert written[0]["g7"] == f"in {root} 3 7 yes"
    document = ShardSource(root / "out" / "made" / "train")[0]
    assert document.trained is not None and not document.trained.all() and document.trained.any()


def test_a_function_that_fails_is_named(root: Path) -> None:
    def generate(processes: int = 1, **more: Any) -> list[TextDocument]:
        settings = GenerateSettings(count=40, **more)
        return list(generate_documents(settings, root, processes))

    with pytest.raises(InvalidRequestError, match="no such word"):
        generate(2, call="maker_of_tests:make", options={"fail": 20})
    with pytest.raises(DataError, match="make fails at index 5: KeyError"):
        generate(call="maker_of_tests:make", options={"fail": -5})
    with pytest.raises(DataError, match="unexpected keyword"):
        generate(call="maker_of_tests:make", options={"wrong": 1})
    with pytest.raises(DataError, match="ended by itself"):
        generate(2, call="maker_of_tests:die")
    for call in ("maker_of_tests:none", "no_module:make", "maker_of_tests", "maker_of_tests:MAKER"):
        with pytest.raises(DataError, match=call):
            generate(call=call)


def test_records_can_be_converted(root: Path) -> None:
    records = [{"turns": ["hello ", "you"]}, {"turns": []}]
    (root / "talks.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    talks = {"path": "talks.jsonl", "convert": "maker_of_tests:talk"}
    reports, _ = prepare(root, change(sources__talks=talks))
    assert texts(root, "talks/train") == {"talks.jsonl:1": "hello you"}
    assert reports["talks"]["dropped"] == {"not converted": 1}
    (root / "talks.jsonl").write_text('{"turn": 1}\n')
    with pytest.raises(DataError, match=r"line 1: maker_of_tests:talk fails: KeyError: 'turns'"):
        prepare(root, change(sources__talks=talks))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (change(sources__web__pth="x"), r"sources\.web\.pth is an unknown key; did you mean 'path'\?"),
        (change(tokeniser={}), "tokeniser is an unknown key; did you mean 'tokenizer'"),
        (change(tokenizer__train__vocab_sise=1), "vocab_sise is an unknown key; did you mean 'vocab_size'"),
        (change(tokenizer__path="x"), "tokenizer: give either path or train"),
        (change(sources__web__path=None), r"sources\.web: give either path or generate"),
        (change(sources__web__stages=[{"normalize": {}}]), "'normalize' is no stage; did you mean 'normalise'"),
        (change(sources__web__stages=[{"length": {"min_chars": 1}}]), "stage length: min_chars"),
        (change(sources__web__stages=[{"length": {"min_characters": "x"}}]), "stage length: min_characters"),
        (change(sources__books__held_out={"fraction": 2}), r"held_out\.fraction"),
        (change(sources={}), "sources"),
        (change(sources={"../x": {"path": "web.jsonl"}}), "cannot be the name"),
        (change(sources__web__path="none*.jsonl"), "source web: there is no file"),
        (change(sources__books__held_out={"fraction": 0.5, "by": "year"}), "no metadata field 'year'"),
        (change(tokenizer__train__sources=["nets"]), "'nets', which does not exist"),
        (change(tokenizer__train__chat_template="none.jinja"), "chat template"),
    ],
)
def test_a_mistake_gets_a_sentence(root: Path, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        prepare(root, settings)
    assert not (root / "out" / "web").exists()


def test_settings_that_cannot_be_read(root: Path) -> None:
    for content, match in (
        ("a: [", "not YAML"),
        ("a: 1\na: 2", "'a' stands there twice"),
        ("[" * 3000, "not YAML|too deeply"),
        ("[1]", "no mapping"),
        (b"\xff", "cannot be read"),
    ):
        (root / "data.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(DataError, match=match):
            read_settings(root / "data.yaml")
    with pytest.raises(DataError, match="cannot be read"):
        read_settings(root / "none.yaml")
    with pytest.raises(DataError, match="no prepared data"):
        read_reports(root)


def test_the_command(root: Path) -> None:
    (root / "data.yaml").write_text(yaml.safe_dump(SETTINGS))
    done = CliRunner().invoke(app, ["prepare", str(root / "data.yaml"), "--out", str(root / "out")])
    assert done.exit_code == 0, done.output
    shown = CliRunner().invoke(app, ["show", str(root / "out"), "--verify"])
    assert "held out" in shown.output and "near-duplicate" in shown.output
    as_json = CliRunner().invoke(app, ["show", str(root / "out"), "--json"])
    assert json.loads(as_json.output)["web"]["train"]["documents"] == 30
