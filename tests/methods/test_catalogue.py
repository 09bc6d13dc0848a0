"""The catalogue: every published method has a card, and every card is whole."""

import dataclasses
import json
import re

import pytest

from headstart.cli.methods import as_dict
from headstart.engine.seams import SLOTS
from headstart.methods import registry
from headstart.methods.registry import Claim, MethodCard, Paper

KEYS = """
    longgen mllm-npu ape prepacking minference sarathi-serve sarathi cacheblend lazyllm rewarming fastdraft swiftkv
    gbnn one-epoch distserve wrap pela mosaicbert ttm hip gstack batchllm algoperf average-params qwen2.5-1m
    token-crisis precropping lserve fim-curriculum zipvl augment-coresets got-d kind flatquant bert2bert
    fastattention spdf compressor self-distillation kv-prediction eft efficientllm compacter mend iaa fastgen frugal
    controlar mustdrop hlp preselect tabpfn w2pgnn ul2 meco distilled-decoding stability-gap difffit pre-gated-moe
    dynamic-tokenization adaptive-attacks augmented-pet ernie3 deep-safety long-context-analysis dkvb starbucks
    flashattention sltrain dsee instructretro slca reprogram-lt essential-sparsity stdo well-read spectr ast
    sfprompt specdec++ pearl predformer aquilamoe m3i intrinsic-dim medusa learngene-sws jrt galore hydragen perp
    lottery-ticket speculative distillation
""".split()  # noqa: SIM905

PLANNED_SLOTS = {"placement", "mixer"}
"""Of seams of the engine that are designed and not built."""

TRAINING_SLOTS = {
    "data_stage",
    "scorer",
    "objective",
    "optimizer",
    "transform",
    "callback",
    "recipe",
    "editor",
    "search",
    "split",
}

CARDS = {card.key: card for card in registry.catalogue()}


def of_papers() -> list[MethodCard]:
    return [card for card in CARDS.values() if card.paper]


def sentences(text: str) -> int:
    return len(re.findall(r"[.!?](?=\s|$)", text))


def test_every_key_is_listed_once():
    """All 92 from the first day and two that some of them refine, and beside them baselines that no paper proposes."""
    assert len(KEYS) == len(set(KEYS)) == 94
    assert sorted(card.key for card in of_papers()) == sorted(KEYS)
    assert [card.key for card in registry.catalogue()] == list(CARDS)


def test_the_list_follows_a_models_life():
    """Stages in their order, keys sorted within each."""
    stages = list(registry.STAGES)
    places = [(stages.index(card.stage), card.key) for card in registry.catalogue()]
    assert places == sorted(places)


@pytest.mark.parametrize("key", CARDS)
def test_every_card_is_whole(key):
    """Four sentences on what it does, and something to say in every other place."""
    card = CARDS[key]
    assert sentences(card.summary) == 4, card.summary
    for text in (card.when_not, card.composes, card.conflicts, *([card.claim.setting] if card.claim else [])):
        assert text and text == " ".join(text.split()), key
    assert all(text.endswith(".") for text in (card.when_not, card.composes, card.conflicts))
    assert all(card.needs) and isinstance(card.needs, tuple)
    assert card.stage in registry.STAGES
    assert (card.status == "planned") == (card.implementation is None)


@pytest.mark.parametrize("key", KEYS)
def test_every_paper_and_its_claim_can_be_found(key):
    """Title, arXiv number, venue with its year, and a claim of one line with setting and source."""
    card = CARDS[key]
    assert card.paper is not None and card.claim is not None
    assert card.paper.title and re.fullmatch(r"\d{4}\.\d{5}", card.paper.arxiv or "")
    assert re.search(r"\b(19|20)\d\d\b", card.paper.venue)
    assert 20 <= len(card.claim.text) <= 90 and "\n" not in card.claim.text
    assert len(card.claim.setting) > 20 and card.claim.source


def test_no_paper_stands_twice():
    """A slip of the pen would give one number to two methods."""
    for field in ("title", "arxiv"):
        values = [getattr(card.paper, field) for card in of_papers()]
        assert len(values) == len(set(values))


@pytest.mark.parametrize("key", CARDS)
def test_slots_exist_in_the_design(key):
    """A method of inference or training fills some slot, a planned one may wait for its seam, an analysis may have
    none."""
    card = CARDS[key]
    engine = set(SLOTS) if card.implementation else set(SLOTS) | PLANNED_SLOTS
    assert set(card.slots) <= engine | TRAINING_SLOTS
    assert len(set(card.slots)) == len(card.slots)
    assert card.slots or card.kind == "analysis"
    if card.kind == "inference":
        assert set(card.slots) & engine
        assert card.exact is not None and card.chunking in ("any", "per_chunk", "whole")
    else:
        assert card.exact is None and card.chunking is None and card.min_context == 0
        assert card.kind == "analysis" or set(card.slots) & TRAINING_SLOTS


@pytest.mark.parametrize("key", CARDS)
def test_a_method_that_is_named_has_a_card(key):
    """What stands in backticks is a key of the catalogue, and never the card's own."""
    card = CARDS[key]
    named = set(re.findall(r"`([^`]+)`", f"{card.when_not} {card.composes} {card.conflicts} {card.summary}"))
    assert named <= set(CARDS) - {key}


@pytest.mark.parametrize("key", CARDS)
def test_a_card_survives_json(key):
    """What programs read holds everything that the card says."""
    card = CARDS[key]
    read = json.loads(json.dumps(as_dict(card, [])))
    assert read["status"] == card.status and read["baseline"] == (card.paper is None)
    fields = {field.name for field in dataclasses.fields(MethodCard)}
    again = MethodCard(
        **{name: value for name, value in read.items() if name in fields - {"paper", "claim", "slots", "needs"}},
        paper=Paper(**read["paper"]) if read["paper"] else None,
        claim=Claim(**read["claim"]) if read["claim"] else None,
        slots=tuple(read["slots"]),
        needs=tuple(read["needs"]),
        implementation=card.implementation,
    )
    assert again == card
