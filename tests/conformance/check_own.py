"""Contracts on methods that a single request brings for itself, beside others that do not."""

from itertools import chain
from typing import Any

from headstart.engine.engine import Engine
from tests.conformance import models
from tests.conformance.case import Case
from tests.conformance.check_answers import cut_at
from tests.conformance.lab import alone, as_method, assert_same, make_engine, params_of, serve
from tests.conformance.pieces import Pieces

_CUTS = range(7, 96, 7)


def check_own(case: Case) -> None:
    """As the method of some requests only it gives them what it gives as the engine's, and their neighbours the plain
    model's, also when both come again and find keys in the cache; either answer tells whether it is exact."""
    prompts, kinds = case.prompts, (params_of(kind, len(case.prompts)) for kind in ("greedy", "drawn"))
    each = [kind[place % 2] for place, kind in enumerate(zip(*kinds, strict=True))]
    pair: list[Any] = [[case.method()], None]
    for settings in ({"page_size": 1, "num_pages": 800}, {"page_size": 16, "num_pages": 400}):
        uncached = settings | {"enable_prefix_caching": False}
        own = alone(cut_at(case, _CUTS, **uncached), prompts, each)
        plain = alone(_plain(case, **uncached), prompts, each)
        # A prompt that is found in part is read on in other pieces, which may tell.
        again = case.card.exact or case.card.chunking == "any"
        engine = _plain(case, **settings) if again else _plain(case, **uncached)
        for round_ in ("first", "second"):
            answers = serve(
                engine,
                list(chain.from_iterable((prompt, prompt) for prompt in prompts)),
                list(chain.from_iterable((asked, asked) for asked in each)),
                uses=pair * len(prompts),
            )
            where = f"pages of {settings['page_size']}, in the {round_} round"
            assert_same(answers[0::2], own, f"requests with the method, {where}")
            assert_same(answers[1::2], plain, f"requests without it, {where}")
            told = {(answer.exact, other.exact) for answer, other in zip(answers[0::2], answers[1::2], strict=True)}
            assert told == {(case.card.exact, True)}, f"answers do not tell which of them are exact: {told}"
    _check_keys(case)


def _check_keys(case: Case) -> None:
    """Keys of a lossy method never serve a request without it; those of an exact one do."""
    prompt, engine = models.ids(40), make_engine(case.model, page_size=4, num_pages=100)
    for use in ([case.method()], None):
        (answer,) = serve(engine, [prompt], uses=[use])
    if not case.card.exact:
        assert answer.cached == 0, f"a request without the method finds {answer.cached} tokens of one with it"
    elif "prompt_rule" not in case.slots:
        assert answer.cached > 0, "a request without the method finds none of the keys of one with it"


def _plain(case: Case, **settings: Any) -> Engine:
    pieces = as_method(Pieces(_CUTS), "pieces")
    return make_engine(case.model, pieces, max_num_batched_tokens=10_000, **settings)
