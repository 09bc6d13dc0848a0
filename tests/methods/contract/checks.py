"""The contracts of training methods, one function each. A broken contract is an AssertionError that says what broke."""

import copy
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.models.decoder import Decoder
from headstart.training.assembly import build_network
from headstart.training.documents import Document
from headstart.training.export import export_run
from headstart.training.loop import Interrupted
from headstart.training.random_streams import numpy_stream
from headstart.training.recipe import write_recipe
from headstart.training.seams import DataStage, DocumentContext, OptimizerFactory, Transform
from headstart.training.stack import TrainingStack
from tests.methods.contract.examples import Example
from tests.methods.contract.lab import PROBE, STEPS, copies, logits, optimizer_state, recipe_for, watched
from tests.training.workbench import losses, weights

Check = Callable[[Example, Path, Path], None]
"""(method, data, an empty directory) → None, or an AssertionError."""


def check_beginning(example: Example, data: Path, out: Path) -> None:
    """Before the first step the network computes what it did without the method, or the declared change of it."""
    made = recipe_for(example, steps=1)
    before = logits(build_network(made.model, made.seed, data))
    run, watch = watched(made, data, out / "run")
    run.execute()
    assert watch.first_logits is not None
    if example.changed is None:
        gap = (watch.first_logits - before).abs().max().item()
        assert gap <= 1e-5, f"the method changes the network by {gap:.2g} before any step, and declares no change"
    else:
        assert example.changed(before, watch.first_logits), "the network is not changed as the method declares"


def check_moves(example: Example, data: Path, out: Path) -> None:
    """Only declared parameters move; the rest, buffers included, stay as they were to the bit."""
    run, watch = watched(recipe_for(example, steps=3), data, out / "run")
    run.execute()
    after = run.network.state_dict()
    assert set(after) == set(watch.first), "training adds or removes parameters"
    moved = [name for name, tensor in watch.first.items() if not torch.equal(tensor, after[name])]
    stray = [name for name in moved if not any(fnmatchcase(name, pattern) for pattern in example.moves)]
    assert not stray, f"parameters move that the method does not declare: {', '.join(stray)}"
    assert moved, "training moves nothing"


def check_checkpoint(example: Example, data: Path, out: Path) -> None:
    """A checkpoint holds nothing that only unpickling could read; optimizers keep tensors and numbers."""
    run, _ = watched(recipe_for(example, steps=2), data, out / "run")
    run.execute()
    for value in optimizer_state(run):
        assert isinstance(value, torch.Tensor | int | float), f"an optimizer keeps a {type(value).__name__}"
    for path in run.store.directory.glob("*/rank-*.pt"):
        try:
            torch.load(path, weights_only=True)
        except Exception as error:
            raise AssertionError(f"a checkpoint cannot be read with weights_only: {error}") from None


def check_resume(example: Example, data: Path, out: Path) -> None:
    """A run that is stopped and resumed gives the losses and the weights of one that is not, to the bit."""
    made = recipe_for(example)
    straight, _ = watched(made, data, out / "straight")
    straight.execute()
    stopped, _ = watched(made, data, out / "halves", stop_at=STEPS // 2)
    with pytest.raises(Interrupted):
        stopped.execute()
    resumed, _ = watched(made, data, out / "halves")
    resumed.execute()
    assert losses(out / "straight") == losses(out / "halves"), "losses after a resume are others"
    ours, theirs = resumed.network.state_dict(), straight.network.state_dict()
    differ = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    assert not differ, f"weights after a resume are others: {', '.join(differ)}"


def check_export(example: Example, data: Path, out: Path) -> None:
    """Transformers loads the export without a missing or unexpected key and computes the trained network's logits."""
    from transformers import AutoModelForCausalLM

    run, _ = watched(recipe_for(example, steps=3), data, out / "run")
    run.execute()
    run.network.eval()
    ours = logits(run.network)
    try:
        run.export(out / "model")
        loaded: Any = AutoModelForCausalLM.from_pretrained(out / "model", output_loading_info=True, dtype=torch.float32)
    except Exception as error:
        raise AssertionError(f"the folded network cannot be exported: {type(error).__name__}: {error}") from error
    model, info = loaded
    assert not info["missing_keys"] and not info["unexpected_keys"], f"keys of the export are wrong: {info}"
    with torch.no_grad():
        theirs = model(PROBE[None]).logits[0]
    gap = (ours - theirs).abs().max().item()
    if not example.no_export:
        assert gap <= 1e-4, f"Transformers computes other logits from the export, by {gap:.2g}"
    assert torch.equal(logits(run.network), ours), "exporting changes the network that is trained"


def check_twice(example: Example, data: Path, out: Path) -> None:
    """Applying, folding, building or reading twice is the same as once."""
    made = recipe_for(example)
    stack = TrainingStack(made.phases[0].use)
    network = build_network(made.model, made.seed, data)
    _twice(network, lambda: [each.apply_(network) for each in stack.of(Transform)], "applying")
    _twice(network, lambda: [each.build(network) for each in stack.of(OptimizerFactory)], "building the optimizer")
    _twice(network, lambda: [each.fold(network) for each in reversed(stack.of(Transform))], "folding")
    encode = Tokenizer.from_directory(data / "tokenizer").encode
    for stage in stack.of(DataStage):
        document = Document(np.arange(40, dtype=np.int32), np.arange(40) % 3 > 0, "d0", {"source": "prose", "n": 1})
        before = _content(document)
        saved = copy.deepcopy(stage.state_dict())
        once, again = [], []
        for found in (once, again):
            stage.load_state_dict(copy.deepcopy(saved))
            context = DocumentContext("prose", 3, lambda text: encode(text, False), numpy_stream(1))
            found.extend(_content(each) for each in stage(document, context))
        assert once == again, "reading a document twice gives other documents"
        assert _content(document) == before, "a stage writes into the document that it reads"


def _twice(network: Decoder, act: Callable[[], Any], what: str) -> None:
    act()
    once, seen = copies(network.state_dict()), logits(network)
    act()
    again = network.state_dict()
    assert list(once) == list(again), f"{what} twice gives other parameters than once"
    differ = [name for name in once if not torch.equal(once[name], again[name])]
    assert not differ, f"{what} twice changes {', '.join(differ)}"
    assert torch.equal(logits(network), seen), f"{what} twice changes what the network computes"


def _content(document: Document) -> tuple[Any, ...]:
    trained = None if document.trained is None else document.trained.tolist()
    return document.token_ids.tolist(), trained, document.id, dict(document.metadata)


def check_costs(example: Example, data: Path, out: Path) -> None:
    """Parameters, bytes and FLOPs are those of the method's formulas, where it declares some."""
    made = recipe_for(example, steps=2)
    plain = build_network(made.model, made.seed, data)
    run, watch = watched(made, data, out / "run")
    run.execute()
    state = sum(value.nbytes if isinstance(value, torch.Tensor) else 4 for value in optimizer_state(run))
    for what, formula, found in (
        ("trained parameters", example.trained_parameters, watch.trained),
        ("bytes of optimizer state", example.optimizer_bytes, state),
        ("FLOPs of a step", example.flops_per_step, watch.flops[-1]),
    ):
        if formula is not None:
            declared = formula(plain)
            assert declared == pytest.approx(found, rel=1e-6), f"{what}: {found:,} and not {declared:,} as declared"


def check_ranks(example: Example, data: Path, together: Path, out: Path) -> None:
    """Two ranks compute what one does, within 1e-5; `together` is the run of the two."""
    alone = out / "alone"
    run, _ = watched(recipe_for(example), data, alone)
    run.execute()
    ours, theirs = losses(alone), losses(together)
    assert ours.keys() == theirs.keys(), "two ranks take other steps than one"
    gap = max(abs(ours[step] - theirs[step]) for step in ours)
    assert gap <= 1e-5, f"the losses of two ranks differ from those of one by {gap:.2g}"
    write_recipe(run.recipe, alone / "recipe.yaml")
    for name in (alone, together):
        export_run(name, name / "model", torch.float32)
    one, two = weights(alone / "model"), weights(together / "model")
    gap = max((one[name] - two[name]).abs().max().item() for name in one)
    assert gap <= 1e-4, f"the weights of two ranks differ from those of one by {gap:.2g}"


CHECKS: dict[str, Check] = {
    "beginning": check_beginning,
    "moves": check_moves,
    "checkpoint": check_checkpoint,
    "resume": check_resume,
    "export": check_export,
    "twice": check_twice,
    "costs": check_costs,
}
"""Those that need one process."""
