"""Questions over real text: whose documents, which answers, and files that cannot be used."""

import json
import lzma
import re
from pathlib import Path

import pytest

from headstart.errors import HeadstartError
from headstart.evaluation.tasks import MissingDataError, Sources, task
from headstart.evaluation.tasks.reading import read_questions
from tests.evaluation.tasks.encoders import Bytes, sources

LINES = [
    {"documents": ["The fox is red."], "question": "What is red?", "answers": ["the fox"]},
    {"documents": ["The owl sleeps.", "The owl is old."], "question": "Who is old?", "answer": "the owl"},
]


def documents_of(prompt: str) -> list[str]:
    context = prompt.split("\n\nUse these documents")[0]
    found = re.split(r"(?:^|\n\n)Document (\d+):\n", context)
    assert [int(number) for number in found[1::2]] == list(range(1, len(found) // 2 + 1))
    return found[2::2]


def write(path: Path, lines: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_single_passage_questions_have_their_answer_in_one_document() -> None:
    """At a length that holds many documents, of which the first are those of the same story."""
    for example in task("qa_1", sources()).examples(Bytes(), 8000, 6, 0):
        found = documents_of(example.prompt)
        assert len(found) >= 3
        title = re.search(r"In the story '(.+?)': ", example.prompt.rsplit("Question: ", 1)[1])
        assert title
        holding = [text for text in found if text.startswith(title[1]) and example.answers[0].lower() in text.lower()]
        assert holding
        assert example.metadata["evidence"] == 1


def test_two_passage_questions_bring_all_their_passages() -> None:
    for example in task("qa_2", sources()).examples(Bytes(), 12_000, 6, 0):
        assert example.metadata["evidence"] >= 2
        title = re.search(r"In the story '(.+?)': ", example.prompt.rsplit("Question: ", 1)[1])
        assert title
        assert sum(text.startswith(title[1]) for text in documents_of(example.prompt)) >= 2


def test_the_place_of_the_evidence_varies(tmp_path: Path) -> None:
    lines = [{"documents": [f"fact {n}"], "question": f"q{n}", "answers": [str(n)]} for n in range(30)]
    found = task("qa", Sources(questions=write(tmp_path / "own.jsonl", lines)))
    places = set()
    for example in found.examples(Bytes(), 700, 20, 0):
        places.add(documents_of(example.prompt).index(f"fact {example.answers[0]}"))
    assert len(places) > 5


def test_fairytale_prompts_hold_the_evidence_and_score_by_f1() -> None:
    found = task("fairytaleqa", sources())
    for example in found.examples(Bytes(), 6000, 5, 0):
        assert len(example.text) + example.max_tokens < 6000
        extras = found.extras(example, found.gold(example))
        assert extras == {"exact": 100, "rouge_l": 100}
        assert 0 < found.score(example, f"{example.answers[0]} zebra") < 100


def test_without_data_the_task_says_what_is_missing() -> None:
    for key in ("qa_1", "qa_2", "fairytaleqa"):
        with pytest.raises(MissingDataError, match="HEADSTART_DATA"):
            list(task(key).examples(Bytes(), 4000, 1, 0))
        with pytest.raises(MissingDataError, match="fairytaleqa_stories"):
            list(task(key, Sources(data=Path("/nowhere"))).examples(Bytes(), 4000, 1, 0))


def test_own_questions_come_from_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", LINES)
    packed = tmp_path / "own.jsonl.xz"
    packed.write_bytes(lzma.compress(path.read_bytes()))
    for file in (path, packed):
        found = task("qa", Sources(questions=file))
        examples = list(found.examples(Bytes(), 700, 2, 0))
        assert {example.answers for example in examples} == {("the fox",), ("the owl",)}
        for example in examples:
            assert found.score(example, found.gold(example)) == 100
            assert all(text in example.prompt for text in ("The fox is red.", "The owl is old."))


@pytest.mark.parametrize(
    ("text", "wants"),
    [
        ("", "holds no questions"),
        ("{", "line 1 of .* is not JSON"),
        ('{"documents": ["a"], "question": "q", "answers": ["x"]}\n[1]', "line 2 of .* is no JSON object"),
        ('{"documents": [], "question": "q", "answers": ["x"]}', "line 1 of .* is no question"),
        ('{"documents": ["a"], "question": "", "answers": ["x"]}', "line 1 of .* is no question"),
        ('{"documents": ["a"], "question": "q", "answers": [1]}', "line 1 of .* is no question"),
        ('{"documents": "a", "question": "q", "answers": ["x"]}', "line 1 of .* is no question"),
    ],
)
def test_a_file_of_something_else_is_refused_with_the_line(tmp_path: Path, text: str, wants: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(text)
    with pytest.raises(HeadstartError, match=wants):
        read_questions(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HeadstartError, match="cannot be read"):
        read_questions(tmp_path / "absent.jsonl")
    broken = tmp_path / "broken.jsonl.xz"
    broken.write_bytes(lzma.compress(json.dumps(LINES[0]).encode())[:-10])
    with pytest.raises(HeadstartError, match="cannot be read"):
        read_questions(broken)
