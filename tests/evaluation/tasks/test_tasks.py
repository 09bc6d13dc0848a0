"""What all tasks promise: their length, the same bytes for the same seed, 100 for gold and 0 for anything else."""

from itertools import pairwise

import pytest

from headstart.errors import HeadstartError
from headstart.evaluation.tasks import GROUPS, TASKS, Sources, TextEncoder, TooShortError, resolve, task
from tests.evaluation.tasks.encoders import Bytes, Words, gpt2, sources

REAL_TEXT = ("qa_1", "qa_2", "fairytaleqa")
GENERATED = [key for key in TASKS if key not in (*REAL_TEXT, "qa")]
# Records cannot be cut, and the frequencies of coded words rise several at a time.
ONE_RECORD = {"niah_multikey_2": 90, "niah_multikey_3": 130, "kv_retrieval": 90, "many_shot": 70, "fwe": 40, "cwe": 60}


def check_lengths(key: str, encoder: TextEncoder, length: int, count: int = 2, given: Sources | None = None) -> None:
    """Prompt and answer together fill the length to within 2%, or a record that cannot be cut."""
    found = task(key, given)
    examples = list(found.examples(encoder, length, count, seed=3))
    assert len(examples) == count * found.questions_per_context
    for example in examples[found.questions_per_context - 1 :: found.questions_per_context]:
        used = len(encoder.encode(example.text)) + example.max_tokens
        assert length - max(0.02 * length, ONE_RECORD.get(key, 0)) <= used <= length, (key, used)
        gold = encoder.encode(found.gold(example), add_special_tokens=False)
        assert len(gold) <= example.max_tokens


@pytest.mark.parametrize("key", GENERATED)
@pytest.mark.parametrize("length", [2048, 4096, 30_000])
def test_an_example_fills_its_length_in_bytes_and_in_words(key: str, length: int) -> None:
    check_lengths(key, Bytes(), length)
    check_lengths(key, Words(), length)


@pytest.mark.parametrize("key", GENERATED)
@pytest.mark.parametrize("length", [1024, 16_384])
def test_an_example_fills_its_length_in_tokens_of_gpt2(key: str, length: int) -> None:
    check_lengths(key, gpt2(), length)


@pytest.mark.parametrize("key", ["qa_1", "qa_2"])
def test_documents_fill_the_length(key: str) -> None:
    for length in (4096, 100_000):
        check_lengths(key, Bytes(), length, given=sources())
    check_lengths(key, gpt2(), 2048, given=sources())


@pytest.mark.parametrize("key", GENERATED)
def test_a_million_tokens_are_made_in_linear_time(key: str) -> None:
    """The text given to the tokenizer, all attempts together, is a small multiple of the example."""
    encoder = Bytes()
    examples = list(task(key).examples(encoder, 1_000_000, 1, 0))
    assert encoder.encoded <= 6_000_000
    used = len(examples[-1].text) + 1 + examples[-1].max_tokens
    assert 980_000 <= used <= 1_000_000


@pytest.mark.parametrize("key", GENERATED)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(key: str) -> None:
    def make(seed: int, count: int = 2) -> list[object]:
        return list(task(key).examples(Bytes(), 3000, count, seed))

    assert make(1) == make(1)
    # An example does not depend on how many are asked for.
    assert make(1, 4)[: len(make(1))] == make(1)
    assert make(1) != make(2)


@pytest.mark.parametrize("key", [*GENERATED, *REAL_TEXT])
def test_gold_scores_100_and_a_wrong_answer_0(key: str) -> None:
    found = task(key, sources() if key in REAL_TEXT else None)
    examples = list(found.examples(Bytes(), 6000, 3, 0))
    for example in examples:
        gold = found.gold(example)
        assert found.score(example, gold) == 100
        assert found.exact(example, gold)
        assert found.score(example, f"{gold}\nAnd then the king went home.") == 100
        for wrong in ("", " ", "\n\n", "I do not know.", "None of the above, or all of them?", "12345", "{}"):
            assert found.score(example, wrong) == 0
            assert not found.exact(example, wrong)
    for example, other in pairwise(examples):
        if not set(example.answers) & set(other.answers):
            assert found.score(example, found.gold(other)) < 50


@pytest.mark.parametrize("key", GENERATED)
def test_the_gold_answer_stands_in_the_context_and_not_in_the_question(key: str) -> None:
    for example in task(key).examples(Bytes(), 6000, 3, 5):
        whole = (example.history[0][0] if example.history else example.prompt).lower()
        question = whole.rsplit("\n", 1)[1] + example.answer_prefix.lower()
        for answer in example.answers:
            assert answer.lower() in whole
            assert answer.lower() not in question


@pytest.mark.parametrize("key", GENERATED)
def test_a_length_that_holds_no_example_is_refused_in_one_sentence(key: str) -> None:
    with pytest.raises(TooShortError, match=rf"^{key} needs at least \d+ tokens of prompt .*, but has -?\d+$"):
        list(task(key).examples(Bytes(), 150, 1, 0))


def test_groups_resolve_to_tasks_once_each_in_order() -> None:
    assert len(GROUPS["ruler"]) == 13
    assert resolve(["vt", "ruler", "vt"])[0] == "vt"
    assert sorted(resolve(["ruler", "niah_single_1"])) == sorted(GROUPS["ruler"])
    assert all(key in TASKS for keys in GROUPS.values() for key in keys)


def test_an_unknown_task_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(HeadstartError, match="did you mean 'niah_single_1'"):
        task("niah_singel_1")
    with pytest.raises(HeadstartError, match="did you mean 'ruler'"):
        resolve(["rulr"])
    with pytest.raises(HeadstartError, match="known are ruler, niah"):
        resolve(["zzz"])
    with pytest.raises(HeadstartError, match="--questions"):
        task("qa")
