"""Names and paths: what is found without the hub, and what is said when it does not help."""

from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects

from headstart.checkpoints.hub import resolve
from headstart.errors import CheckpointError


def test_directories_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name") == Path("owner/name")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/owner") == tmp_path / "owner"


def test_a_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(CheckpointError, match="is a file; give the checkpoint directory"):
        resolve(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "name",
    ["nothing", "./gone", "../a/b", "/a/b", "a/b/c", Path("a/b"), "~no-such-user/a", "/" + 5000 * "a", "a\0b", ""],
)
def test_what_cannot_be_an_id_never_reaches_the_hub(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(CheckpointError, match=r"there is no directory .* hub id, which looks like 'owner/name'"):
        resolve(name)


def test_only_what_is_read_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = [
        "additional_chat_templates/tool_use.jinja",
        "chat_template.jinja",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]
    originals = [
        "consolidated.safetensors",
        "consolidated-00001-of-00002.safetensors",
        "consolidated.safetensors.index.json",
        "original/consolidated.00.pth",
        "original/model.safetensors",
        "original/params.json",
    ]
    others = ["README.md", "pytorch_model.bin", "tokenizer.model", "model.gguf"]
    taken: list[str] = []

    def download(name: str, **patterns: Any) -> str:
        assert name == "owner/name"
        taken.extend(filter_repo_objects(sorted(read + originals + others), **patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("owner/name") == tmp_path
    assert taken == read


def response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://example.com/owner/name"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.GatedRepoError("403", response=response(403)), "is gated on the hub; accept its terms"),
        (errors.RepositoryNotFoundError("404", response=response(404)), "neither a directory nor a model on the hub"),
        (errors.LocalEntryNotFoundError("offline"), "not in the local cache and the hub cannot be reached"),
        (errors.HFValidationError("bad"), "neither a directory nor a valid hub id"),
        (OSError(28, "No space left on device"), r"could not be downloaded from the hub: .*No space left"),
        (RuntimeError("first\nsecond"), "could not be downloaded from the hub: first$"),
    ],
)
def test_errors_of_the_hub_become_one_sentence(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=said) as caught:
        resolve("owner/name")
    assert "'owner/name'" in str(caught.value) and "\n" not in str(caught.value)


def test_offline_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"hub cannot be reached|could not be downloaded"):
        resolve("owner/name")
