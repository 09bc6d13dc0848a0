"""Crossovers on synthetic curves: found where they are, and not where only noise is."""

import random
from collections.abc import Callable

import pytest

from headstart.evaluation.crossover import crossovers, sentence, verdict
from headstart.evaluation.ledger import Row

LENGTHS = (256, 512, 1024, 2048, 4096)


def _row(values: list[float], side: str = "a", length: int = 256, *, higher: bool = False) -> Row:
    return Row.of(f"TTFT at {length}", side, "s", values, higher_is_better=higher, metric="TTFT", length=length)


def _curve(side: str, cost: Callable[[int], float], *, noise: float, rounds: int, draw: random.Random) -> list[Row]:
    return [_row([cost(n) * draw.lognormvariate(0, noise) for _ in range(rounds)], side, n) for n in LENGTHS]


def test_quadratic_against_linear_with_overhead() -> None:
    draw = random.Random(0)
    dense = _curve("dense", lambda n: n * n / 1e6, noise=0.02, rounds=5, draw=draw)
    sparse = _curve("sparse", lambda n: 0.5 + n / 2e3, noise=0.02, rounds=5, draw=draw)
    (found,) = crossovers([*dense, *sparse], "sparse", "dense", ("TTFT", "decode"))
    # n²/1e6 = 0.5 + n/2e3 at 1,000 tokens.
    assert found.length == 2048 or (found.length == 1024 and found.verdicts[2] == "better")
    assert found.verdicts[:2] == ["worse", "worse"] and found.monotone
    text = sentence(found)
    assert f"pays from {found.length:,} tokens on" in text and "not monotone" not in text


def test_noise_alone_is_seldom_taken_for_a_crossover() -> None:
    """One-sided error of one in forty per length: over 400 curves at the last length, within 4 deviations."""
    draw = random.Random(1)
    false = 0
    for _ in range(400):
        rows = [row for side in ("a", "b") for row in _curve(side, lambda n: n / 1e3, noise=0.2, rounds=4, draw=draw)]
        (found,) = crossovers(rows, "a", "b", ("TTFT",))
        false += found.length is not None
    assert false <= 10 + 4 * (400 * 0.025 * 0.975) ** 0.5


def test_drift_that_both_share_is_no_noise() -> None:
    """A machine that slows down for everybody does not hide a difference of a tenth."""
    drift = [1.0, 1.4, 2.1, 1.2, 1.7]
    a = _row([0.90, 0.91 * 1.4, 0.89 * 2.1, 0.90 * 1.2, 0.90 * 1.7])
    b = _row([1.0 * factor for factor in drift])
    assert verdict(a, b) == "better" and verdict(b, a) == "worse"


@pytest.mark.parametrize(
    ("ours", "theirs", "higher", "expected"),
    [
        ([1.0, 1.0, 1.0], [2.0, 2.0, 2.0], False, "better"),
        ([1.0, 1.0, 1.0], [2.0, 2.0, 2.0], True, "worse"),
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], False, "same"),
        ([1.0, 3.0, 2.0], [2.0, 1.0, 3.0], False, "same"),
        ([1.0, 1.1], [9.0, 9.1], False, "unknown"),
        ([1.0], [9.0], False, "unknown"),
        ([0.0, 0.0, 0.0], [1.0, 1.01, 0.99], False, "better"),
    ],
)
def test_verdicts(ours: list[float], theirs: list[float], higher: bool, expected: str) -> None:
    assert verdict(_row(ours, higher=higher), _row(theirs, "b", higher=higher)) == expected


def _found(*factors: float, rounds: int = 4) -> str:
    """The sentence for a side that takes so many times as long as the other, length by length."""
    rows = []
    for length, factor in zip(LENGTHS, factors, strict=False):
        wobble = [1.0, 1.01, 0.99, 1.0][:rounds]
        rows += [_row([factor * w for w in wobble], "a", length), _row([1.0] * rounds, "b", length)]
    (found,) = crossovers(rows, "a", "b", ("TTFT",))
    return sentence(found)


def test_sentences() -> None:
    assert "better at every measured length, 256 to 1,024 tokens" in _found(0.5, 0.5, 0.5)
    assert "worse at every measured length" in _found(2, 2, 2)
    assert "no difference beyond noise" in _found(1, 1, 1)
    assert "pays from 1,024 tokens on (same at 512)" in _found(2, 1, 0.5)
    assert "does not pay at 1,024 tokens (worse)" in _found(0.5, 1, 2)
    assert "never better" in _found(1, 2, 1)
    assert "not monotone: better at 256, worse at 512, better at 1,024" in _found(0.5, 2, 0.5)
    assert "not known" in _found(0.5, 0.5, rounds=2)


def test_only_common_lengths_are_compared() -> None:
    rows = [_row([1.0] * 3, "a", 256), _row([1.0] * 3, "a", 512), _row([2.0] * 3, "b", 512)]
    (found,) = crossovers(rows, "a", "b", ("TTFT",))
    assert found.lengths == [512]
    assert crossovers(rows, "a", "c", ("TTFT",)) == []
