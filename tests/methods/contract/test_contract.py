"""Every registered training method keeps the contracts: it is here by being registered."""

from pathlib import Path

import pytest

from tests.methods.contract.checks import CHECKS, check_ranks
from tests.methods.contract.conftest import training_keys
from tests.methods.contract.examples import EXAMPLES, example_of

KEYS = training_keys()


@pytest.mark.parametrize("contract", CHECKS)
@pytest.mark.parametrize("key", KEYS)
def test_contract(key: str, contract: str, data: Path, tmp_path: Path) -> None:
    """One contract, one method, one process."""
    CHECKS[contract](example_of(key), data, tmp_path)


@pytest.mark.parametrize("key", KEYS)
def test_two_ranks_equal_one(key: str, data: Path, two_ranks: Path, tmp_path: Path) -> None:
    """Sharded over two processes, the method trains the same model."""
    check_ranks(example_of(key), data, two_ranks / key, tmp_path)


def test_examples_are_of_registered_methods() -> None:
    """An entry whose method is gone is gone too."""
    assert set(EXAMPLES) <= set(KEYS)
