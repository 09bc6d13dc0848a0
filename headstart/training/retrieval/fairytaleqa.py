"""Questions over fairy tales: the training split of FairytaleQA (Xu et al., 2022, arXiv 2203.13947)."""

import random
from dataclasses import dataclass
from functools import lru_cache

from headstart.errors import HeadstartError
from headstart.training.data.readers import read_records
from headstart.training.retrieval.exercise import Exercise, Room, Turn
from headstart.training.retrieval.haystack import cut

_OPENINGS = (
    "Read the story and answer the questions.",
    "Here is a fairy tale. Questions about it follow.",
    "Answer the questions with the help of the text.",
    "Read what happens and then answer.",
    "Below is a story.",
    "Story time. Listen carefully, you will be asked about it.",
    "Use the text below to answer in a few words.",
    "Answer shortly, from the text alone.",
    "Please read this tale.",
    "Reading comprehension.",
    "The answers to the questions are in the text.",
    "",
)


@dataclass(frozen=True)
class _Story:
    title: str
    sections: tuple[str, ...]
    questions: tuple[tuple[frozenset[int], str, str], ...]
    """Which sections (from 0) hold the answer, question, answer."""


def fairytaleqa(room: Room) -> Exercise:
    """Sections of one story with other stories around them; questions whose answers these sections hold."""
    paths = room.files.get("fairytaleqa", ())
    if len(paths) != 2:
        raise HeadstartError("the kind fairytaleqa needs two files: fairytaleqa: [STORIES, QUESTIONS]")
    stories = _stories(*paths)
    rng = room.rng
    for _ in range(200):
        story = rng.choice(stories)
        # Up to 40 tokens for each question with its answer, and 60 for what is around the context.
        budget = room.ruler.chars(room.tokens - 60 - 40 * room.questions, " ".join(story.sections))
        first, last = _window(rng, story, budget)
        held = set(range(first, last))
        asked = [question for question in story.questions if question[0] <= held]
        if asked:
            break
    else:
        raise HeadstartError(f"no section of a story fits into {room.tokens} tokens; raise the length")
    chosen = rng.sample(asked, min(len(asked), room.questions))
    heading = rng.choice(("{}\n\n", "# {}\n\n", "{}\n\n", 'The story "{}":\n\n'))
    others = rng.sample(stories, len(stories))
    unit = heading.format(_title(story)) + "\n\n".join(story.sections[first:last])
    several = budget - len(unit) > 2000

    def more(tokens: float) -> list[str]:
        blocks, missing = [], room.ruler.chars(tokens, unit)
        while missing > 60 and others:
            other = others.pop()
            if other is not story:
                text = heading.format(_title(other)) + "\n\n".join(other.sections)
                blocks.append(cut(text, missing))
                missing -= len(blocks[-1]) + 2
        return blocks

    name_story = several and rng.random() < 0.6
    turns = [
        Turn(f'In the story "{_title(story)}": {question}' if name_story else question, answer)
        for _, question, answer in chosen
    ]
    return Exercise([unit], turns, rng.choice(_OPENINGS), "units", more, "\n\n".join)


def _window(rng: random.Random, story: _Story, budget: int) -> tuple[int, int]:
    """A run of sections within the budget, as long as it can be from a start drawn at random; may be empty."""
    whole = sum(map(len, story.sections)) + 2 * len(story.sections)
    first = 0 if whole <= budget else rng.randrange(len(story.sections))
    last, size = first, 0
    while last < len(story.sections) and size + len(story.sections[last]) + 2 <= budget:
        size += len(story.sections[last]) + 2
        last += 1
    return first, last


def _title(story: _Story) -> str:
    return story.title.replace("-", " ").strip().capitalize()


@lru_cache(maxsize=2)
def _stories(stories: str, questions: str) -> tuple[_Story, ...]:
    """The stories of the training split."""
    asked: dict[str, list[tuple[frozenset[int], str, str]]] = {}
    try:
        for _, _, record in read_records(questions):
            if record["split"] == "train":
                where = frozenset(int(part) - 1 for part in str(record["cor_section"]).split(",") if part.strip())
                answer = str(record["answer1"]).strip()
                if where and answer:
                    asked.setdefault(str(record["story"]), []).append((where, str(record["question"]).strip(), answer))
        found = tuple(
            _Story(str(record["story"]), tuple(record["sections"]), tuple(asked.get(str(record["story"]), ())))
            for _, _, record in read_records(stories)
            if record["split"] == "train"
        )
    except (KeyError, ValueError) as error:
        raise HeadstartError(
            f"{stories} and {questions} are not FairytaleQA's stories and questions: {error}"
        ) from None
    if not found:
        raise HeadstartError(f"{stories} holds no story of the training split")
    return found
