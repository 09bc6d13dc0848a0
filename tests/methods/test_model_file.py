"""Files of one model: what is written comes back, and what is damaged, foreign or of another kind gets one sentence."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from headstart.checkpoints.default import default_checkpoint_path
from headstart.errors import MethodError
from headstart.methods.model_file import ModelFile
from headstart.models.config import ModelConfig

FILE = ModelFile("toy", "lists")


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return ModelConfig.from_hf(json.loads((default_checkpoint_path() / "config.json").read_text()))


def test_what_is_written_is_read(tmp_path: Path, config: ModelConfig) -> None:
    path = tmp_path / "lists.json"
    path.write_text(json.dumps(FILE.content(config, lists=[[1, 2], [3]], text_tokens=7)))
    read = FILE.read(path, config)
    assert (read["lists"], read["text_tokens"]) == ([[1, 2], [3]], 7)


def test_another_model_is_refused_by_the_field_that_differs(tmp_path: Path, config: ModelConfig) -> None:
    path = tmp_path / "lists.json"
    path.write_text(json.dumps(FILE.content(config)))
    other = replace(config, num_layers=config.num_layers + 1)
    with pytest.raises(
        MethodError, match=rf"its num_layers is {config.num_layers}.* is {config.num_layers + 1}; .*make"
    ):
        FILE.read(path, other)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read .it is no JSON"),
        ("[]", "is no file of lists"),
        ('{"format": "headstart other 1"}', "is no file of lists"),
        ('{"format": "headstart toy 1"}', "its num_layers is None"),
        ('{"format": "headstart toy 1", "model": [1]}', "its num_layers is None"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, config: ModelConfig, text: str, says: str) -> None:
    path = tmp_path / "lists.json"
    path.write_text(text)
    with pytest.raises(MethodError, match=f"^toy: .*{says}.*headstart calibrate toy MODEL"):
        FILE.read(path, config)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path, config: ModelConfig) -> None:
    with pytest.raises(MethodError, match=r"cannot be read .No such file"):
        FILE.read(tmp_path / "absent.json", config)
