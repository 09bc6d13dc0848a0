"""Who may take part in a comparison, and what one shows on a tiny model."""

from pathlib import Path
from typing import Any

import pytest

from headstart.errors import HeadstartError
from headstart.evaluation import compare as compare_module
from headstart.evaluation.compare import Choice, contenders
from headstart.evaluation.compare_lengths import Contender
from headstart.evaluation.compare_quality import QualityAsk, QualityRun, check_ask
from headstart.evaluation.compare_subject import Subject
from headstart.evaluation.sides import BenchmarkError, HeadstartSide, SideSettings


class Silent:
    """A reporter that remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def begin(self, total: int) -> None:
        pass

    def step(self, description: str) -> None:
        pass

    def done(self) -> None:
        pass


class InProcess:
    """A stack of this engine in this process, called as one in a process of its own."""

    def __init__(self, settings: SideSettings) -> None:
        self.side = HeadstartSide(settings)
        self.versions = self.side.versions()

    def call(self, name: str, *arguments: Any) -> dict[str, Any]:
        found = getattr(self.side, name)(*arguments)
        found = vars(found) if hasattr(found, "__dict__") else found
        return {"result": found, "seconds": 0.0, "peak_rss": 1, "background_load": 0.0}

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *_: Any) -> None:
        return


def test_contenders() -> None:
    found = contenders(["exact", "sarathi-serve:chunk=64", "exact", " prefill-first "])
    assert found == [
        Contender("exact"),
        Contender("sarathi-serve:chunk=64", use=("sarathi-serve:chunk=64",)),
        Contender("exact #2"),
        Contender("prefill-first", use=("prefill-first",)),
    ]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["exact"], "at least 2"),
        (["exact", ""], "no name"),
        (["exact", "transfomers"], "did you mean 'transformers'"),
        (["exact", "Llama.cp"], "did you mean 'llama.cpp'"),
        (["exact", "vlm"], "did you mean 'vllm'"),
        (["exact", "vllm"], "pip install vllm"),
        (["exact", "sarathi-serv"], "did you mean 'sarathi-serve'"),
        (["exact", "sarathi-serve:chnk=1"], "did you mean 'chunk'"),
        (["exact", "sarathi-serve sarathi"], "both fill the scheduler slot"),
    ],
)
def test_contenders_that_cannot_take_part(names: list[str], words: str) -> None:
    with pytest.raises(HeadstartError, match=words) as caught:
        contenders(names)
    assert "\n" not in str(caught.value)


def test_a_peer_that_is_not_installed_comes_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_module, "missing_packages", lambda side: ["llama_cpp"])
    with pytest.raises(BenchmarkError, match=r"llama_cpp is not installed.*pip install"):
        contenders(["exact", "llama.cpp"])


def test_quality_beside_the_exact_stack(stories: str) -> None:
    subject = Subject.of_model(stories, device="cpu")
    parties = [Contender("exact"), Contender("sarathi-serve:chunk=50", use=("sarathi-serve:chunk=50",))]
    ask = check_ask(QualityAsk(("bits_per_byte",), (200, 100), 2), subject, parties)
    assert ask.lengths == (100, 200)
    result = QualityRun(subject, parties, ask, 1, Silent(), launch=InProcess).run()
    rows = {(row.name, row.side): row for row in result.rows}
    for length in (100, 200):
        moved = rows[f"KL from exact at {length}", "sarathi-serve:chunk=50"]
        assert len(moved.values) == 2 and max(moved.values) < 1e-6
        assert rows[f"top-1 agreement at {length}", "sarathi-serve:chunk=50"].values == [100.0, 100.0]
        exact, other = (rows[f"bits_per_byte at {length}", c.label].median for c in parties)
        assert exact == pytest.approx(other, abs=1e-4) and 0 < exact < 8
    assert ("KL from exact at 100", "exact") not in rows
    assert result.partial is None


def test_random_weights_show_the_distance_alone(tmp_path: Path) -> None:
    subject = Subject.of_shape("tiny", tmp_path, seed=0, dtype="float32", device="cpu")
    parties = contenders(["exact", "prefill-first"])
    with pytest.raises(BenchmarkError, match="no tokenizer"):
        check_ask(QualityAsk(("niah_depth",), (64,), 1), subject, parties)
    result = QualityRun(subject, parties, QualityAsk((), (64,), 1), 1, Silent(), launch=InProcess).run()
    assert {row.metric for row in result.rows} == {"KL from exact", "KL of the first token", "top-1 agreement"}
    assert any("random" in note for note in result.notes)


def test_quality_that_is_interrupted_keeps_what_is_complete(tmp_path: Path) -> None:
    class Interrupted(InProcess):
        calls = 0

        def call(self, name: str, *arguments: Any) -> dict[str, Any]:
            Interrupted.calls += 1
            if Interrupted.calls == 3:
                raise KeyboardInterrupt
            return super().call(name, *arguments)

    subject = Subject.of_shape("tiny", tmp_path, seed=0, dtype="float32", device="cpu")
    ask = QualityAsk((), (32, 64), 2)
    result = QualityRun(subject, contenders(["prefill-first"], least=1), ask, 1, Silent(), launch=Interrupted).run()
    assert result.partial == "interrupted by Ctrl-C"
    assert {row.length for row in result.rows} == {32}


@pytest.mark.parametrize(
    ("ask", "parties", "words"),
    [
        (QualityAsk(("niah_dept",)), [Contender("exact")], "did you mean 'niah_depth'"),
        (QualityAsk((), (99_999,)), [Contender("exact")], "beyond"),
        (QualityAsk(), [Contender("transformers", "transformers")], "leave out transformers"),
    ],
)
def test_quality_that_cannot_be_asked(ask: QualityAsk, parties: list[Contender], words: str) -> None:
    with pytest.raises(HeadstartError, match=words):
        check_ask(ask, Subject.of_model(None, device="cpu"), parties)
    with pytest.raises(BenchmarkError, match="at least 1"):
        QualityAsk(count=0)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (Choice(shape="tinny"), "did you mean 'tiny'"),
        (Choice(model="/nowhere"), "no directory"),
        (Choice(model="a", shape="tiny"), "leave out"),
        (Choice(dtype="float16"), "bfloat16 or float32"),
        (Choice(device="cuda:99"), "no device"),
    ],
)
def test_models_that_cannot_be_had(tmp_path: Path, choice: Choice, words: str) -> None:
    with pytest.raises(HeadstartError, match=words):
        choice.subject(tmp_path / "checkpoint")


def test_prompts_of_a_trained_model_are_text_and_of_a_random_one_are_not(tmp_path: Path) -> None:
    trained = Subject.of_model(None, device="cpu")
    assert trained.tokenizer is not None and trained.costs is not None
    prompt = trained.prompt(100_000, "x")
    assert len(prompt) == 100_000 and prompt != trained.prompt(100_000, "y")
    assert trained.prompt(50, "x") == prompt[:50]
    assert " the " in trained.tokenizer.inner.decode(prompt[:2000])
    shaped = Subject.of_shape("tiny", tmp_path, seed=0, device="cpu")
    assert shaped.tokenizer is None and max(shaped.prompt(5000, "x")) < shaped.config.vocab_size


def test_only_plain_llamas_are_written_as_gguf(tmp_path: Path) -> None:
    subject = Subject.of_shape("tiny", tmp_path, seed=0, device="cpu")
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(BenchmarkError, match="--gguf"):
        subject.gguf(tmp_path, "float32")
