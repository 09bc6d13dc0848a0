"""Each task's structure, read back from its prompt by other code, against the published definition."""

import json
import re
from collections import Counter
from itertools import pairwise

import pytest

from headstart.evaluation.tasks import Example, task
from headstart.evaluation.tasks.haystack import NOISE, insert, prose, sentences
from headstart.evaluation.tasks.needles import PICTURE_DEPTHS, RULER_DEPTHS
from headstart.texts import wild_wood
from headstart.words import split_of
from tests.evaluation.tasks.encoders import Bytes, Words

NEEDLE = re.compile(r"Note that the secret (number|code) for (\S+) is (\S+)\.")
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def examples(key: str, length: int = 9000, count: int = 4) -> list[Example]:
    return list(task(key).examples(Bytes(), length, count, seed=11))


def asked_keys(example: Example) -> list[str]:
    names = re.search(r"for (.+?)(?: does the text| that the text)", example.prompt.rsplit("\n", 1)[1])
    assert names
    return re.split(r", | and ", names[1])


# keys, values per key, queries, kind of key, kind of value
NEEDLES = {
    "niah_single_1": (1, 1, 1, "words", "number"),
    "niah_single_2": (1, 1, 1, "words", "number"),
    "niah_single_3": (1, 1, 1, "words", "code"),
    "niah_multikey_1": (4, 1, 1, "words", "number"),
    "niah_multikey_2": (None, 1, 1, "words", "number"),
    "niah_multikey_3": (None, 1, 1, "uuids", "code"),
    "niah_multivalue": (1, 4, 1, "words", "number"),
    "niah_multiquery": (4, 1, 4, "words", "number"),
    "niah_depth": (1, 1, 1, "words", "number"),
}


@pytest.mark.parametrize("key", NEEDLES)
def test_needles_are_as_many_and_of_the_kinds_that_ruler_says(key: str) -> None:
    keys, values, queries, key_kind, value_kind = NEEDLES[key]
    for example in examples(key):
        found = NEEDLE.findall(example.prompt)
        hidden: dict[str, list[str]] = {}
        for kind, name, value in found:
            assert kind == value_kind
            hidden.setdefault(name, []).append(value)
            assert bool(UUID.fullmatch(value)) == (value_kind == "code")
            assert value_kind == "code" or re.fullmatch(r"\d{7}", value)
            assert bool(UUID.fullmatch(name)) == (key_kind == "uuids")
        assert len(hidden) == keys if keys else len(hidden) > 40
        assert {len(found) for found in hidden.values()} == {values}
        asked = asked_keys(example)
        assert len(asked) == queries
        assert Counter(example.answers) == Counter(value for name in asked for value in hidden[name])


def test_keys_are_words_that_no_training_task_uses() -> None:
    for example in examples("niah_multikey_2", count=1):
        for _, name, _ in NEEDLE.findall(example.prompt):
            assert [split_of(word) for word in name.split("-")] == ["evaluation"] * 2


@pytest.mark.parametrize("key", ["niah_single_1", "vt"])
def test_noise_is_lines_of_five_short_sentences(key: str) -> None:
    for example in examples(key):
        lines = [line for line in example.prompt.split("\n") if line.startswith("The hills")]
        cut = [line for line in lines if line != NOISE]
        assert all(NOISE.startswith(line) for line in cut)
        # The last line, and that of a solved example.
        assert len(cut) <= (2 if key == "vt" else 1)
        assert len(lines) > 20


@pytest.mark.parametrize("key", [name for name in NEEDLES if name.startswith("niah_multikey") or "depth" in name])
def test_without_its_needles_the_context_is_the_haystack(key: str) -> None:
    for example in examples(key, count=2):
        context = example.prompt.split("\n", 1)[1].rsplit("\n", 1)[0]
        rest = " ".join(NEEDLE.sub("", context).split())
        if key in ("niah_multikey_2", "niah_multikey_3"):
            assert rest == ""
        else:
            assert rest == " ".join(prose().pieces(len(rest.split())))


def test_the_picture_has_a_needle_at_each_of_eleven_depths() -> None:
    found = list(task("niah_depth").examples(Words(), 6000, 11, 0))
    assert sorted(example.metadata["depth"] for example in found) == list(range(0, 101, 10))
    assert [example.metadata["depth"] for example in found] == list(PICTURE_DEPTHS)
    for example in found:
        context = example.prompt.split("\n", 1)[1].rsplit("\n", 1)[0]
        before = len(sentences(NEEDLE.split(context)[0])) if example.metadata["depth"] else 0
        assert before / len(sentences(context)) == pytest.approx(example.metadata["depth"] / 100, abs=0.02)


def test_the_depths_of_prose_are_forty_steps_of_the_whole() -> None:
    assert len(set(RULER_DEPTHS)) == 40
    assert (RULER_DEPTHS[0], RULER_DEPTHS[-1]) == (0, 100)


def test_a_chain_of_variables_leads_from_the_value_to_all_five() -> None:
    for example in examples("vt", count=8):
        solved, asked = example.prompt.split("Follow the assignments.")[1:]
        value = re.search(r"hold the value (\d+) after", asked)
        assert value
        holds = {value[1]}
        order = []
        for name, source in re.findall(r"^VAR ([A-Z]+) = (?:VAR )?(\w+)$", asked, re.MULTILINE):
            assert len(name) == 5
            # Each assignment stands behind the one that it reads.
            assert source in holds
            holds.add(name)
            order.append(name)
        assert order == list(example.answers)
        assert len(order) == 5
        assert len(re.findall(r"^VAR [A-Z]{3} = ", solved, re.MULTILINE)) == 5
        assert "are: " in solved


def numbered(text: str) -> list[str]:
    found = re.findall(r"(\d+)\. ([a-z-]+)", text)
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    return [word for _, word in found]


@pytest.mark.parametrize(("length", "often", "seldom"), [(3000, 6, 1), (9000, 30, 3)])
def test_ten_common_words_stand_out_by_ruler_s_counts(length: int, often: int, seldom: int) -> None:
    for example in examples("cwe", length):
        listed = example.prompt.rsplit("Here is a numbered list", 1)[1].split("\n")[1]
        counts = Counter(numbered(listed))
        assert set(counts.values()) == {often, seldom}
        assert {word for word, count in counts.items() if count == often} == set(example.answers)
        assert len(example.answers) == 10
        # No answer is part of another word, so that naming another word earns nothing.
        for answer in example.answers:
            assert sum(answer in word for word in counts) == 1


def test_one_solved_list_comes_before_the_common_words() -> None:
    for example in examples("cwe", 9000, 2):
        solved, answer = example.prompt.split("Here is a numbered list")[1].split("\nQuestion:")
        counts = Counter(numbered(solved.split("\n")[1]))
        assert sorted(counts.values()) == [3] * 30 + [10] * 10
        named = numbered(answer.split("are:")[1])
        assert set(named) == {word for word, count in counts.items() if count == 10}


def test_long_lists_go_on_with_pairs_of_words() -> None:
    (example,) = task("cwe").examples(Words(), 100_000, 1, 0)
    counts = Counter(numbered(example.prompt.rsplit("Here is a numbered list", 1)[1].split("\n")[1]))
    assert len(counts) > 10_000
    assert set(counts.values()) == {30, 3}


def test_coded_words_follow_a_zeta_distribution_and_the_dots_lead() -> None:
    for example in examples("fwe", 20_000):
        coded = example.prompt.split("come up most often. ")[1].split("\nQuestion")[0].split()
        ranked = Counter(coded).most_common()
        assert ranked[0][0] == "..."
        assert [word for word, _ in ranked[1:4]] == list(example.answers)
        assert ranked[3][1] > ranked[4][1]
        for rank, (word, count) in enumerate(ranked[:6], 1):
            assert word == "..." or re.fullmatch("[a-z]{6}", word)
            assert count == pytest.approx(ranked[0][1] / rank**2, abs=1)
        assert example.metadata["vocabulary"] == (20_000 - 50) // 50


def test_the_key_value_object_is_json_and_its_answers_cover_it() -> None:
    found = examples("kv_retrieval", 20_000, 12)
    places = []
    for example in found:
        pairs = json.loads(example.prompt.split("\n\n")[1])
        (asked,) = UUID.findall(example.prompt.rsplit("\n", 1)[1])
        assert pairs[asked] == example.answers[0]
        assert all(UUID.fullmatch(text) for pair in pairs.items() for text in pair)
        places.append(list(pairs).index(asked) / len(pairs))
    gaps = sorted([0.0, *places, 1.0])
    assert max(b - a for a, b in pairwise(gaps)) < 0.25


def test_a_uuid_counts_only_as_a_word_of_its_own() -> None:
    (example,) = examples("kv_retrieval", count=1)
    (answer,) = example.answers
    found = task("kv_retrieval")
    assert found.score(example, f'{answer}"}}') == 100
    assert found.score(example, f"It is '{answer}'.") == 100
    assert found.score(example, f"x{answer}") == 0
    assert found.score(example, answer[:-1]) == 0


def test_many_shots_show_the_noun_of_the_question_with_its_label() -> None:
    for example in examples("many_shot", 12_000, 6):
        shots = re.findall(r"Phrase: (\w+) (\w+) (\w+)\nLabel: (\w+)\n", example.prompt)
        labels: dict[str, set[str]] = {}
        for *_, noun, label in shots:
            labels.setdefault(noun, set()).add(label)
        first, second, asked = example.prompt.rsplit("Phrase: ", 1)[1].split()
        assert labels[asked] == set(example.answers)
        assert all(len(found) == 1 for found in labels.values())
        assert len({label for found in labels.values() for label in found}) == 8
        assert not {first, second} & {word for a, b, *_ in shots for word in (a, b)}


def test_a_label_counts_only_as_the_first_word() -> None:
    (example,) = examples("many_shot", count=1)
    (answer,) = example.answers
    found = task("many_shot")
    assert found.score(example, f" {answer}\n\nPhrase: x") == 100
    assert found.score(example, f" other {answer}") == 0
    assert found.score(example, f"{answer}s") == 0


def test_later_questions_share_the_context_and_know_the_answers_given() -> None:
    found = examples("multi_turn", 6000, 2)
    assert [example.metadata["turn"] for example in found] == [1, 2, 3, 1, 2, 3]
    for start in (0, 3):
        first, second, third = found[start : start + 3]
        hidden = {name: value for _, name, value in NEEDLE.findall(first.prompt)}
        assert len(hidden) == 6
        assert first.context_id == second.context_id == third.context_id
        assert second.text.startswith(first.text)
        assert third.text.startswith(second.text)
        for example in (first, second, third):
            assert example.answers == (hidden[asked_keys(Example("", "\n" + example.prompt, (), "", 1))[0]],)
        assert second.history[0][1].endswith(f"{first.answers[0]}.")
        assert [message["role"] for message in third.messages] == ["user", "assistant"] * 2 + ["user"]


def test_needles_go_between_pieces_and_nothing_is_lost() -> None:
    assert insert(["a", "b", "c"], ["1", "2", "3"], [0, 2, 3]) == ["1", "a", "b", "2", "c", "3"]
    assert insert([], ["1"], [0]) == ["1"]


def test_prose_repeats_and_may_stop_within_a_sentence() -> None:
    text = "One two three. Four five!"
    assert prose(text).pieces(7) == ["One two three.", "Four five!", "One two"]
    assert " ".join(prose().pieces(10**5)).count("The Mole had long wanted") == 1 + 10**5 // len(
        wild_wood().text.split()
    )
