"""Stories, country facts and dialogues: made-up files in the form of the data sets."""

import json
from pathlib import Path

import pytest
from reading import documents, prose, turns

from headstart.errors import HeadstartError
from headstart.training.data.bpe import SpecialSpan
from headstart.training.retrieval import make

HAYSTACK = prose()


def write(path: Path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def fairytales(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("fairytales")
    stories, questions = [], []
    for number in range(20):
        split = "val" if number % 5 == 3 else "test" if number % 5 == 4 else "train"
        name = f"{split}-story-{number}"
        sections = [
            f"Part {part} of {name}. " + " ".join(f"In {split} {number} {part} {word} happened." for word in range(12))
            for part in range(8)
        ]
        stories.append({"split": split, "story": name, "sections": sections})
        for part in range(8):
            where = str(part + 1) if part % 3 else f"{part + 1},{min(8, part + 2)}"
            record = {"split": split, "story": name, "cor_section": where}
            questions.append(
                record | {"question": f"Which {number}x{part}?", "answer1": f"{split} answer {number} {part}"}
            )
    return [write(folder / "stories.jsonl", stories), write(folder / "questions.jsonl", questions)]


@pytest.mark.parametrize("length", [700, 3000])
def test_answers_are_those_of_the_questions_and_their_sections_are_there(fairytales: list[str], length: int) -> None:
    for document in documents("fairytaleqa", 40, HAYSTACK, length=length, files={"fairytaleqa": fairytales}):
        assert "val" not in document.text
        assert "test" not in document.text
        for asked in turns(document):
            number, part = asked.question[asked.question.rfind("Which ") + 6 :].split("?")[0].split("x")
            assert asked.answer == f"train answer {number} {part}"
            parts = [int(part)] if int(part) % 3 else [int(part), min(7, int(part) + 1)]
            assert all(f"In train {number} {each} 11 happened." in asked.context for each in parts)


def test_stories_of_other_splits_alone_are_refused(fairytales: list[str], tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", [{"split": "test", "story": "x", "sections": ["y"]}])
    with pytest.raises(HeadstartError, match="no story of the training split"):
        documents("fairytaleqa", 1, HAYSTACK, files={"fairytaleqa": [other, fairytales[1]]})


@pytest.fixture(scope="module")
def countries(tmp_path_factory: pytest.TempPathFactory) -> str:
    def record(number: int) -> dict:
        geography = {
            "Location": f"beside country {number}",
            "Climate": f"climate {number}; hot in summer",
            "Area": {"total": f"{number}00 sq km"},
            "Coastline": f"{number} km",
            "Elevation": {"highest point": f"Mount {number}"},
        }
        government = {"Capital": {"name": f"Town{number}"}, "Internet country code": f".c{number}"}
        people = {"Population": {"total": f"{number},000 (2024 est.)"}, "Median age": "no mapping"}
        sections = {"Geography": geography, "Government": government, "People": people, "Issues": "none"}
        return {"name": f"Country{number}", "facts": sections}

    return write(tmp_path_factory.mktemp("facts") / "facts.jsonl", [record(number) for number in range(200)])


def test_facts_are_those_of_the_country_that_is_asked_for(countries: str) -> None:
    expected = {
        "the capital": "Town{}",
        "the location": "beside country {}",
        "the climate": "climate {}",
        "the area": "{}00 sq km",
        "the length of the coastline": "{} km",
        "the highest point": "Mount {}",
        "the internet code": ".c{}",
        "the population": "{},000",
    }
    for document in documents("factbook", 60, HAYSTACK, files={"factbook": countries}):
        for asked in turns(document):
            tail = asked.question[-250:]
            number = (
                tail[tail.rfind("Country") + 7 :].split("?")[0].split(".")[0].split(":")[0].split(",")[0].split(" ")[0]
            )
            fact = max(expected, key=lambda each: (tail.rfind(each), len(each)))
            answer = asked.answer.split(" is ", 1)[-1]
            assert answer.removesuffix("." * asked.answer.startswith("The ")) == expected[fact].format(number)
            assert answer.rstrip(".") in asked.context


def test_dialogues_begin_with_the_user_and_only_the_assistant_is_trained(tmp_path: Path) -> None:
    said = [["assistant", "Hi"], ["user", "One tea"], ["user", "please"], ["assistant", "Sure"], ["user", "Thanks"]]
    path = write(tmp_path / "dialogs.jsonl", [{"turns": said}, {"turns": [["user", "alone"]]}])
    chat, plain = (
        make(0, 1, length=500, haystack=HAYSTACK, kinds={"dialog": 1}, files={"dialog": path}, chat=chat)
        for chat in (True, False)
    )
    assert chat.text == "<|user|>One tea please<|end|><|assistant|>Sure<|end|>"
    assert [span.text for span in chat.spans if span.trained] == ["Sure", "<|end|>"]
    assert [span.text for span in chat.spans if isinstance(span, SpecialSpan)] == [
        "<|user|>",
        "<|end|>",
        "<|assistant|>",
        "<|end|>",
    ]
    assert plain.text == "User: One tea please\nAssistant: Sure\n"
    assert [span.text for span in plain.spans if span.trained] == [" Sure\n"]


@pytest.mark.parametrize("kind", ["fairytaleqa", "factbook", "dialog"])
def test_files_that_are_missing_or_of_another_form_get_one_sentence(kind: str, tmp_path: Path) -> None:
    with pytest.raises(HeadstartError, match=f"{kind}: "):
        documents(kind, 1, HAYSTACK)
    count = 2 if kind == "fairytaleqa" else 1
    with pytest.raises(HeadstartError, match=r"absent\.jsonl"):
        documents(kind, 1, HAYSTACK, files={kind: [str(tmp_path / "absent.jsonl")] * count})
    wrong = write(tmp_path / "wrong.jsonl", [{"text": "something else"}])
    with pytest.raises(HeadstartError, match=r"wrong\.jsonl"):
        documents(kind, 1, HAYSTACK, files={kind: [wrong] * count})
