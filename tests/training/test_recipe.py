"""Recipes: read, overridden, compared, and refused with the key that is meant."""

from pathlib import Path

import pytest

from headstart.training.errors import TrainingError
from headstart.training.recipe import Recipe, differences, read_recipe, recipe_of, resolve, write_recipe
from tests.training.workbench import FIRST, phase, recipe, write


def test_amounts_have_units() -> None:
    found = recipe_of(recipe(phase(**FIRST, tokens="0.3M", global_batch_tokens="1_024", sequence_length=32)), "r")
    assert found.phases[0].tokens == 300_000 and found.phases[0].global_batch_tokens == 1024
    # No rounding down by a bit: 2.3 million is not 2,299,999.
    assert recipe_of(recipe(phase(**FIRST, tokens="2.3m")), "r").phases[0].tokens == 2_300_000
    assert recipe_of(recipe(phase(**FIRST, tokens="1B")), "r").phases[0].tokens == 10**9


def test_steps_and_rows_follow() -> None:
    found = recipe_of(recipe(phase(steps=6, **FIRST), phase("next", steps=3)), "r")
    assert (found.steps, found.phases[0].steps, found.phases[0].rows) == (9, 6, 4)
    assert recipe_of(recipe(phase(tokens=200, **FIRST)), "r").steps == 1


def test_numbers_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(write(tmp_path, recipe()).read_text().replace("lr: 0.01", "lr: 1e-2"))
    found = read_recipe(tmp_path / "r.yaml")
    assert found.phases[0].optimizer is not None and found.phases[0].optimizer.arguments == {"lr": 0.01}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    found = read_recipe(write(tmp_path, recipe(phase(**FIRST, eval={"sources": {"x": "held-out"}}), phase("two"))))
    write_recipe(found, tmp_path / "again.yaml")
    assert read_recipe(tmp_path / "again.yaml") == found


def test_a_resolved_recipe_is_read_from_anywhere(tmp_path: Path) -> None:
    content = recipe(phase(**FIRST, eval={"sources": {"x": "held-out"}}), model={"checkpoint": "start"})
    found = resolve(recipe_of(content, "r"), tmp_path, tmp_path / "tokenizer")
    assert found.phases[0].sources["prose"].path == str(tmp_path / "prose")
    assert found.phases[0].eval is not None and found.phases[0].eval.sources == {"x": str(tmp_path / "held-out")}
    assert (found.tokenizer, found.model.checkpoint) == (str(tmp_path / "tokenizer"), str(tmp_path / "start"))
    default = recipe_of(recipe(model={"checkpoint": "default"}), "r")
    assert resolve(default, tmp_path, tmp_path).model.checkpoint == "default"


def overridden(tmp_path: Path, *overrides: str) -> Recipe:
    return read_recipe(write(tmp_path, recipe(phase(**FIRST), phase("two"))), overrides)


def test_overrides_name_phases_by_name_or_number(tmp_path: Path) -> None:
    found = overridden(
        tmp_path,
        "seed=9",
        "phases.main.optimizer.lr=3e-4",
        "phases.1.sources.prose.weight=5",
        "phases.two.optimizer={name: muon}",
        "model.config.hidden_size=64",
        "clip=null",
    )
    assert found.seed == 9 and found.clip is None and found.model.config is not None
    assert found.model.config["hidden_size"] == 64
    assert found.phases[0].optimizer is not None and found.phases[0].optimizer.arguments == {"lr": 3e-4}
    assert found.phases[1].sources["prose"].weight == 5
    assert found.phases[1].optimizer is not None and found.phases[1].optimizer.name == "muon"


def test_an_override_changes_one_of_the_places_that_an_anchor_fills(tmp_path: Path) -> None:
    text = write(tmp_path, recipe()).read_text()
    text = text.replace("  schedule:", "  eval: &eval {sources: {x: held-out}}\n  schedule:")
    lengths = "<<: {tokens: 128, sequence_length: 32, global_batch_tokens: 128}"
    text += f"- {{{lengths}, name: two, sources: {{a: {{path: b}}}}, eval: *eval}}\n"
    (tmp_path / "r.yaml").write_text(text)
    found = read_recipe(tmp_path / "r.yaml", ("phases.main.eval.every=7",))
    assert [each.eval.every for each in found.phases if each.eval] == [7, 200]


def test_methods_are_added_to_every_phase(tmp_path: Path) -> None:
    path = write(tmp_path, recipe(phase(**FIRST, use=["a"]), phase("two")))
    assert [each.use for each in read_recipe(path, use=("b:c=1",)).phases] == [("a", "b:c=1"), ("b:c=1",)]


def test_differences_are_the_keys_that_change_the_numbers() -> None:
    first = recipe_of(recipe(phase(**FIRST), phase("two")), "r")
    free = recipe(
        phase(**FIRST, eval={"sources": {"x": "elsewhere"}}),
        phase("two"),
        name="other",
        keep=7,
        log_every=3,
        tokenizer="t",
    )
    free["phases"][1]["sources"]["prose"]["path"] = "moved"
    assert differences(first, recipe_of(free, "r")) == []
    other = recipe(phase(**FIRST), phase("two", packing="complete"), seed=4)
    other["phases"][0]["optimizer"]["lr"] = 0.5
    assert differences(first, recipe_of(other, "r")) == ["seed", "phases.0.optimizer.lr", "phases.1.packing"]
    assert differences(first, recipe_of(recipe(phase(**FIRST)), "r")) == ["phases"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda r: r.update(sead=1), "unknown key 'sead'; did you mean 'seed'"),
        (lambda r: r["phases"][0].update(token=1), "unknown key 'phases.0.token'; did you mean 'tokens'"),
        (lambda r: r["phases"][0]["sources"]["prose"].update(weigth=1), "'phases.0.sources.prose.weigth'.*'weight'"),
        (
            lambda r: r["phases"][0].update(eval={"sources": {}, "evry": 3}),
            "'phases.0.eval.evry'; did you mean 'every'",
        ),
        (lambda r: r["model"].update(chekpoint="x"), "'model.chekpoint'; did you mean 'checkpoint'"),
        (lambda r: r.pop("model"), "model is missing"),
        (lambda r: r["phases"][0].pop("sources"), "phases.0.sources is missing"),
        (lambda r: r["phases"][0].update(sources={}), "phases.0.sources: Dictionary should have at least 1 item"),
        (lambda r: r.update(model={}), "model: give either config or checkpoint"),
        (lambda r: r["model"].update(checkpoint="x"), "model: give either config or checkpoint"),
        (lambda r: r["phases"][0].update(tokens="many"), "phases.0.tokens: Input should be a valid integer"),
        (lambda r: r["phases"][0].update(tokens=-5), "phases.0.tokens: Input should be greater than 0"),
        (lambda r: r["phases"][0].update(tokens=100), "tokens must be at least global_batch_tokens"),
        (
            lambda r: r["phases"][0].update(global_batch_tokens=100),
            "global_batch_tokens must be a multiple of sequence",
        ),
        (lambda r: r["phases"][0].update(micro_batch_tokens=48), "micro_batch_tokens must be a multiple of sequence"),
        (lambda r: r["phases"][0]["sources"]["prose"].update(weight=0), "weight: Input should be greater than 0"),
        (lambda r: r["phases"][0].pop("optimizer"), "the first phase needs an optimizer and a schedule"),
        (lambda r: r["phases"].append(r["phases"][0]), "two phases have the same name"),
        (lambda r: r["phases"][0].update(name="A b"), "phases.0.name: String should match"),
        (lambda r: r.update(phases=3), "phases: Input should be a valid tuple"),
        (lambda r: r.update(phases=[]), "phases: Tuple should have at least 1 item"),
        (lambda r: r.update(precision="fp8"), "precision: Input should be 'bf16' or 'fp32'"),
        (lambda r: r["phases"][0].update(optimizer={"lr": 1}), "phases.0.optimizer.name is missing"),
    ],
)
def test_a_bad_recipe_names_the_key(tmp_path: Path, change: object, match: str) -> None:
    content = recipe()
    change(content)  # type: ignore[operator]
    with pytest.raises(TrainingError, match=match) as raised:
        read_recipe(write(tmp_path, content))
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("seed", "write an override as a.b=value, not 'seed'"),
        ("=3", "write an override as"),
        ("sead=1", "unknown key 'sead'; did you mean 'seed'"),
        ("phases.mian.tokens=1", "names no phase; did you mean 'main'"),
        ("phases.7.tokens=1", "names no phase"),
        ("phases.main=1", "replaces a whole phase"),
        ("seed.x=1", "goes into 'seed', which holds a plain value"),
        ("seed.x.y=1", "holds a plain value"),
    ],
)
def test_a_wrong_override_is_said(tmp_path: Path, override: str, match: str) -> None:
    with pytest.raises(TrainingError, match=match):
        overridden(tmp_path, override)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: [1", "is not YAML"),
        ("- 1", "no mapping"),
        ("", "no mapping"),
        ("seed: 1\nname: x\nseed: 2", "the key 'seed' stands there twice"),
        ("a: &a [*a]", "holds itself"),
        ("a: " + "[" * 3000, "nested too deeply|is not YAML"),
        ("a: !!python/object:os.system {}", "is not YAML"),
    ],
)
def test_what_is_no_recipe_is_said(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(TrainingError, match=match):
        read_recipe(path)


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="cannot be read"):
        read_recipe(tmp_path / "none.yaml")
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TrainingError, match=r"cannot be read|is not YAML"):
        read_recipe(tmp_path / "r.yaml")
    with pytest.raises(TrainingError, match="cannot be read"):
        read_recipe(tmp_path)
