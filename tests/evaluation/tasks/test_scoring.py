"""Scorers on outputs that try to earn what they do not deserve."""

import pytest

from headstart.evaluation.tasks.scoring import (
    exact_match,
    match_all,
    match_part,
    normalised_match,
    rouge_l,
    token_f1,
)


def test_match_all_counts_the_share_of_answers_said_in_any_case() -> None:
    assert match_all(["Alpha", "beta", "42", "x"], "ALPHA and 42") == 50
    assert match_all(["a b"], "a  b") == 0
    assert match_all(["7654321"], "The number is 7654321.") == 100
    assert match_all(["7654321"], "765 4321") == 0


def test_match_part_is_content_with_one() -> None:
    assert match_part(["the sun", "sun"], "It was the Sun.") == 100
    assert match_part(["the sun"], "moon") == 0


def test_exact_match_wants_every_answer_and_nothing_else() -> None:
    assert exact_match(["a1", "b2"], " b2, a1.\nmore text")
    assert exact_match(["a1", "b2"], "a1 and b2")
    assert not exact_match(["a1", "b2"], "a1")
    assert not exact_match(["a1"], "a1 a1")
    assert not exact_match(["a1"], "the answer is a1")
    assert not exact_match(["a1"], "")


def test_normalised_match_ignores_case_articles_and_punctuation() -> None:
    assert normalised_match(["The old king"], "old King!") == 100
    assert normalised_match(["The old king"], "the old kings") == 0


def test_f1_is_that_of_the_best_answer() -> None:
    # Precision 2/3, recall 2/2.
    assert token_f1(["red shoes"], "red shoes indeed") == pytest.approx(80)
    assert token_f1(["nothing here", "red shoes"], "red shoes") == 100
    assert token_f1(["red"], "red red red") == pytest.approx(50)
    assert token_f1(["red shoes"], "") == 0
    assert token_f1(["red shoes"], "a blue hat") == 0


def test_rouge_l_keeps_to_the_order_of_words() -> None:
    # The longest common subsequence of "the cat sat on the mat" and "the mat sat": "the sat" or "the mat".
    assert rouge_l(["the cat sat on the mat"], "the mat sat") == pytest.approx(100 * 2 * 2 / 9)
    assert rouge_l(["a b c d"], "d c b a") == pytest.approx(25)
    assert rouge_l(["a b"], "") == 0
    assert rouge_l(["x", "a b"], "A, b.") == 100
