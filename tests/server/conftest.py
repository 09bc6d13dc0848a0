"""A server that the tests share, around a small published Llama."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from headstart import LLM, AsyncEngine
from tests.server.harness import Running, running

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ opening | default('assistant') }}:{% endif %}"
)


@pytest.fixture(scope="session")
def checkpoint(stories: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260k with a chat template."""
    directory = tmp_path_factory.mktemp("checkpoints") / "stories"
    shutil.copytree(stories, directory)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    return directory


@pytest.fixture(scope="session")
def server(checkpoint: Path) -> Iterator[Running]:
    """The server that most tests share; what they leave running would show in `wait_until_idle`."""
    with running(AsyncEngine.from_model(str(checkpoint), dtype="float32")) as server:
        yield server
        server.wait_until_idle()


@pytest.fixture(scope="session")
def llm(checkpoint: Path) -> LLM:
    """The same model in process, to compare with."""
    return LLM(str(checkpoint), dtype="float32")
