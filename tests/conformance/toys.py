"""The toys in the registry, for as long as a test lasts."""

from collections.abc import Iterator
from contextlib import contextmanager

from headstart.methods import registry
from headstart.methods.registry import MethodCard
from tests.conformance.bad_toys import Broken
from tests.conformance.good_toys import Good


@contextmanager
def registered(key: str, toy: Good | Broken) -> Iterator[MethodCard]:
    """One toy, under a key of its own."""
    registry.catalogue()
    before = dict(registry._METHODS)
    # A class of its own, since a card hangs on its class and one toy may have several keys.
    implementation = type(toy.toy.__name__, (toy.toy,), {"__doc__": toy.toy.__doc__})
    registry.method(key, stage="schedule", paper=None, **toy.traits)(implementation)
    try:
        yield registry.card(key)
    finally:
        registry._METHODS.clear()
        registry._METHODS.update(before)
