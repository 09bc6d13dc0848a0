"""Needle documents: the facts are parsed back out of the context, and every question has one right answer."""

import re

import pytest
from reading import KEY, VALUE, Asked, bare, documents, last_match, pattern, prose, split_list, turns

from headstart.training.retrieval import needle_words as words
from headstart.words import pool, split_of

ATTRIBUTES = sorted(
    {a for some in words.ATTRIBUTES.values() for a in some} | {f"special magic {kind}" for kind in words.ATTRIBUTES},
    key=len,
    reverse=True,
)
A = "|".join(ATTRIBUTES)
STATEMENTS = [pattern(template, a=A, k=KEY, v=VALUE) for template in words.STATEMENTS]
KEYS = rf"{KEY}(?:, {KEY})*(?:,? and {KEY})?"
QUESTIONS = [pattern(template, a=A, k=KEYS) for template in (*words.QUESTIONS, *words.PLURAL_QUESTIONS)]
LEADS = [pattern(template, a=A, k=KEYS) for template in (*words.LEADS, *words.PLURAL_LEADS)]
HAYSTACK = prose()


def stated(context: str) -> dict[tuple[str, str], list[str]]:
    """(attribute, key) → values in the order of the text."""
    found = {
        match.start("k"): match
        for each in STATEMENTS
        for match in sorted(each.finditer(context), key=lambda m: -len(m[0]))
    }
    facts: dict[tuple[str, str], list[str]] = {}
    for _, match in sorted(found.items()):
        facts.setdefault((match["a"], match["k"]), []).append(match["v"])
    return facts


def gold(asked: Asked) -> list[str]:
    question = last_match(QUESTIONS, asked.question)
    facts = stated(asked.context)
    return [value for key in re.findall(KEY, question["k"]) for value in facts[question["a"], key]]


@pytest.mark.parametrize("kind", ["single", "multi_key", "multi_value", "multi_query", "questions", "needles_only"])
def test_answers_are_what_the_context_states(kind: str) -> None:
    for document in documents(kind, 60, HAYSTACK):
        asked = turns(document)
        assert asked, document
        for each in asked:
            assert split_list(bare(each.answer, LEADS)) == gold(each), document.text


@pytest.mark.parametrize("kind", ["single", "multi_key", "questions", "needles_only"])
def test_each_asked_key_is_stated_as_often_as_it_has_values(kind: str) -> None:
    for document in documents(kind, 30, HAYSTACK):
        for asked in turns(document):
            question = last_match(QUESTIONS, asked.question)
            values = split_list(bare(asked.answer, LEADS))
            context = asked.context
            for lead in LEADS:
                context = re.sub(rf"{lead.pattern}\s*$", "", context)
            context = context.replace(question[0], "")
            key = re.compile(rf"(?<![\w-]){re.escape(question['k'])}(?![\w-])")
            assert len(key.findall(context)) == len(values), context
            for value in values:
                assert len(re.findall(rf"(?<![\w-]){value}(?![\w-])", asked.context)) == 1


def test_keys_and_word_values_come_from_the_training_half() -> None:
    evaluation = {word for kind in ("adjective", "noun", "name", "city") for word in pool(kind, "evaluation")}
    for kind in ("needles_only", "questions", "multi_query"):
        for document in documents(kind, 30, HAYSTACK):
            for (_, key), values in stated(document.text).items():
                for part in re.findall(r"[A-Za-z]{3,}", " ".join([key, *values])):
                    if part not in ("the", "from") and not re.fullmatch("[0-9a-f]+", part):
                        assert part not in evaluation
                        assert split_of(part) == "train"


def test_needles_lie_at_every_depth() -> None:
    tenths = set()
    for document in documents("single", 120, HAYSTACK, length=2000):
        asked = turns(document)[0]
        value = bare(asked.answer, LEADS)
        tenths.add(int(10 * asked.context.find(value) / len(asked.context)))
    assert tenths >= set(range(10))


def test_passkeys_are_found_again() -> None:
    names = "|".join(words.PASSKEYS)
    statements = [pattern(template, a=names, v=VALUE) for template in words.PASSKEY_STATEMENTS]
    questions = [pattern(template, a=names) for template in words.PASSKEY_QUESTIONS]
    leads = [pattern(template, a=names) for template in words.PASSKEY_LEADS]
    for document in documents("passkey", 40, HAYSTACK):
        for asked in turns(document):
            name = last_match(questions, asked.question)["a"]
            found = {m["v"] for each in statements for m in each.finditer(asked.context) if m["a"] == name}
            assert bare(asked.answer, leads) in found
            others = {bare(each.answer, leads) for each in turns(document)} - {bare(asked.answer, leads)}
            assert not any(re.fullmatch(r"\d+", value) and value in others for value in found)
