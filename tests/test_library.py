"""A library of documents: read once, found after a restart, listed and removed."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart import LLM, SamplingParams
from headstart.errors import HeadstartError
from headstart.library import Library, read_documents, split

TEXTS = {"foxes.txt": "Foxes are red and run. " * 30, "owls.md": "Owls are wise.\n\nThey see at night. " * 12}


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("documents")
    for name, text in TEXTS.items():
        (directory / name).write_text(text)
    (directory / "picture.png").write_bytes(b"\xff\xd8")
    return directory


@pytest.fixture(scope="module")
def filled(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("library")
    llm = _llm(directory)
    made = Library(directory).add(llm, read_documents([documents]), longest=64)
    assert [document.name for document in made] == ["foxes.txt", "owls.md"]
    return directory


def _llm(directory: Path, **settings: Any) -> LLM:
    given: dict[str, Any] = {"use": ["cacheblend"], "kv_tier": f"disk={directory}:100MB"} | settings
    return LLM(dtype="float32", num_pages=200, max_model_len=1000, **given)


def test_a_server_finds_what_was_added(filled: Path) -> None:
    library = Library(filled)
    chunks = [library.documents["owls.md"].chunks[0], *library.documents["foxes.txt"].chunks[:2]]
    llm = _llm(filled)
    prompt = {"prompt": "\n\n".join(chunks) + "\n\nWho is wise?", "chunks": chunks}
    llm.generate(prompt, SamplingParams(max_tokens=2, temperature=0))
    counts = llm.engine.stats().methods["cacheblend"]
    assert counts["chunks loaded"] == 3 and "chunks computed" not in counts


def test_what_was_added_is_listed_and_removed(filled: Path, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    directory.mkdir()
    for path in filled.rglob("*"):
        if path.is_file():
            target = directory / path.relative_to(filled)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    library = Library(directory)
    foxes, owls = library.documents["foxes.txt"], library.documents["owls.md"]
    assert library.on_disk(foxes)[0] == len(foxes.files) > 0
    assert " ".join(foxes.chunks).split() == TEXTS["foxes.txt"].split()
    library.remove("foxes.txt")
    again = Library(directory)
    assert list(again.documents) == ["owls.md"]
    assert again.on_disk(owls)[0] == len(owls.files)
    assert again.on_disk(foxes)[0] == 0
    with pytest.raises(HeadstartError, match=r"no document 'owl.md'.*did you mean 'owls.md'"):
        again.remove("owl.md")


def test_bad_input_is_refused_in_a_sentence(documents: Path, tmp_path: Path) -> None:
    with pytest.raises(HeadstartError, match=r"picture.png cannot be read: it is not UTF-8"):
        read_documents([documents / "picture.png"])
    with pytest.raises(HeadstartError, match="there are no text files in"):
        read_documents([tmp_path])
    with pytest.raises(HeadstartError, match="no method in force reuses chunks"):
        Library(tmp_path).add(_llm(tmp_path, use=[]), [("a", "text")])
    with pytest.raises(HeadstartError, match="the document a has no text"):
        Library(tmp_path).add(_llm(tmp_path), [("a", " \n\n ")])
    (tmp_path / "library.json").write_text("{")
    with pytest.raises(HeadstartError, match=r"library.json cannot be read"):
        Library(tmp_path)


def test_a_catalogue_cannot_name_files_elsewhere(filled: Path, tmp_path: Path) -> None:
    entries = json.loads((filled / "library.json").read_text())
    entries["documents"][0]["files"] = ["../../x"]
    (tmp_path / "library.json").write_text(json.dumps(entries))
    with pytest.raises(HeadstartError, match="is no page of its own"):
        Library(tmp_path).remove("foxes.txt")


@settings(max_examples=80, deadline=None)
@given(st.text("ab \n", max_size=200), st.integers(1, 30))
def test_a_split_loses_no_word_and_keeps_to_the_length(text: str, longest: int) -> None:
    chunks = split(text, len, longest)
    assert " ".join(chunks).split() == text.split()
    assert all(len(chunk) <= longest or len(chunk.split()) == 1 for chunk in chunks)
