"""The contract suite can fail: for each contract there is a broken method that it catches."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.methods.contract import toys
from tests.methods.contract.checks import CHECKS, check_ranks

BROKEN = {
    "toy-loud": ("beginning", "changes the network by .* before any step"),
    "toy-undone": ("beginning", "not changed as the method declares"),
    "toy-leaky": ("moves", "move that the method does not declare: embedding.weight"),
    "toy-pickled": ("checkpoint", "cannot be read with weights_only"),
    "toy-forgetful": ("resume", "after a resume are others"),
    "toy-unfolded": ("export", "computes other logits"),
    "toy-left": ("export", "cannot be exported"),
    "toy-stacking": ("twice", "applying twice gives other parameters"),
    "toy-heavy": ("costs", "trained parameters"),
}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """The toys, for one test."""
    with toys.registered():
        yield


@pytest.mark.parametrize("key", BROKEN)
def test_a_broken_method_is_caught(key: str, data: Path, tmp_path: Path) -> None:
    """The contract that it breaks says so."""
    contract, sentence = BROKEN[key]
    with pytest.raises(AssertionError, match=sentence):
        CHECKS[contract](toys.EXAMPLES[key], data, tmp_path)


@pytest.mark.parametrize("contract", CHECKS)
def test_a_good_method_passes(contract: str, data: Path, tmp_path: Path) -> None:
    """A transform that keeps every contract is not accused of anything."""
    CHECKS[contract](toys.EXAMPLES["toy-good"], data, tmp_path)


def test_a_method_that_looks_at_its_own_rank_is_caught(data: Path, two_ranks: Path, tmp_path: Path) -> None:
    """Two ranks do not equal one."""
    with pytest.raises(AssertionError, match="two ranks differ from those of one"):
        check_ranks(toys.EXAMPLES["toy-local"], data, two_ranks / "toy-local", tmp_path)
