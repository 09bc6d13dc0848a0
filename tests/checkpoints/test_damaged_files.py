"""Whatever stands in a checkpoint's files, it loads and answers, or is refused in one sentence."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from headstart import SamplingParams
from headstart.checkpoints.reader import load_checkpoint
from headstart.engine.args import EngineArgs
from headstart.engine.engine import Engine
from headstart.errors import HeadstartError
from tests.checkpoints.tiny_tokenizer import write_tokenizer
from tests.models.configs import FAMILIES, make_pair

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(240)]

NAMES = ("llama", "llama_yarn_mscale", "phi3_longrope_partial", "gemma3_scaled", "qwen3_moe_mixed")
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
FILES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    *("model.safetensors.index.json", "weights"),
)
ODD = [
    *(
        None,
        True,
        0,
        -1,
        1,
        2,
        3,
        9_999,
        2**31 - 1,
        2**31,
        2**63,
        10**30,
        0.5,
        1e-30,
        1e308,
        float("nan"),
        float("inf"),
    ),
    *("", "x", "a\nb", "\ud800", "é" * 300, "../x", "/etc/passwd", "bfloat16", "I64", "linear"),
    *([], [0], [[]], [1] * 1000, ["x"], [None], {}, {"a": 1}, {"type": "x"}),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """Small models with a tokenizer, the first with an index."""
    directory = tmp_path_factory.mktemp("checkpoints")
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            patch.setitem(FAMILIES[name], "vocab_size", 320)
            path = make_pair(name, directory)[1]
            write_tokenizer(path)
            (path / "chat_template.jinja").write_text(TEMPLATE)
            (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2], "temperature": 0.5}))
            found.append(path)
    single, shard = found[0] / "model.safetensors", found[0] / "model-00001-of-00001.safetensors"
    single.rename(shard)
    with safe_open(shard, "pt") as file:
        index = {"weight_map": dict.fromkeys(file.keys(), shard.name)}
    (found[0] / "model.safetensors.index.json").write_text(json.dumps(index))
    for path in found:
        assert load_checkpoint(path).tokenizer is not None
    yield found


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a JSON value has parts."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, part in inner for place in ((*at, key), *places(part, (*at, key)))]


def changed(content: Any, data: st.DataObject) -> Any:
    """A JSON value with some parts replaced, moved, wrapped or gone."""
    for _ in range(data.draw(st.integers(1, 3))):
        found = places(content)
        shallow = [place for place in found if len(place) <= 2]
        if not found:
            break
        # A tokenizer's vocabulary would get all the changes otherwise.
        *way, last = data.draw(st.sampled_from(shallow) | st.sampled_from(found))
        parent = content
        for key in way:
            parent = parent[key]
        kind = data.draw(st.sampled_from(("odd", "odd", "odd", "gone", "moved", "wrapped")))
        if kind == "odd":
            parent[last] = copy.deepcopy(data.draw(st.sampled_from(ODD)))
        elif kind == "gone":
            del parent[last]
        elif kind == "moved":
            other: Any = content
            for key in data.draw(st.sampled_from(found)):
                other = other[key]
            parent[last] = copy.deepcopy(other)
        else:
            for _ in range(data.draw(st.sampled_from((1, 2, 60)))):
                parent[last] = [parent[last]] if data.draw(st.booleans()) else {"x": parent[last]}
    return content


def garbled(content: bytes, data: st.DataObject) -> bytes:
    """Bytes cut, doubled, overwritten or cut off."""
    start = data.draw(st.integers(0, len(content)))
    stop = min(len(content), start + data.draw(st.integers(0, 40)))
    middle = data.draw(st.sampled_from((b"", content[start:stop] * 3, b"\xed\xa0\x80", b"1e999", b"NaN", b"\0")))
    content = content[:start] + (middle or data.draw(st.binary(max_size=8))) + content[stop:]
    return content[: data.draw(st.integers(0, len(content)))] if data.draw(st.sampled_from((0, 0, 1))) else content


def damaged(path: Path, data: st.DataObject) -> bytes:
    """What is to stand in a file instead."""
    content = path.read_bytes()
    if data.draw(st.sampled_from((0, 0, 0, 1))) or path.suffix not in (".json", ".safetensors"):
        return garbled(content, data)
    if path.suffix == ".json":
        return json.dumps(changed(json.loads(content), data)).encode("utf-8", "surrogatepass")
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(changed(json.loads(content[8 : 8 + length]), data)).encode("utf-8", "surrogatepass")
    said = data.draw(st.sampled_from((len(header), len(header), len(header), 0, length, 2**63, 2**64 - 1)))
    return said.to_bytes(8, "little") + header + content[8 + length :]


def use(directory: Path) -> None:
    """Load a checkpoint and let it write a little."""
    engine = Engine(EngineArgs(model=str(directory), device="cpu", num_pages=20, max_num_seqs=2))
    engine.submit(engine.prepare("one", "the old king", SamplingParams(max_tokens=3)))
    for _ in range(40):
        if not engine.has_work:
            return
        engine.step()
    raise AssertionError("it answers nothing")


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_a_damaged_file_is_no_crash_and_no_hang(checkpoints: list[Path], data: st.DataObject) -> None:
    directory = data.draw(st.sampled_from(checkpoints))
    name = data.draw(st.sampled_from(FILES))
    if name == "model.safetensors.index.json":
        directory = checkpoints[0]
    path = next(directory.glob("*.safetensors")) if name == "weights" else directory / name
    whole = path.read_bytes()
    path.write_bytes(damaged(path, data))
    try:
        use(directory)
    except HeadstartError as error:
        said = str(error)
        assert said.strip() and "\n" not in said and len(said) < 700, said
    finally:
        path.write_bytes(whole)


def test_sizes_without_weights_behind_them_take_no_memory(checkpoints: list[Path]) -> None:
    path = checkpoints[0] / "config.json"
    whole = path.read_text()
    for field in ("vocab_size", "intermediate_size", "num_hidden_layers"):
        path.write_text(json.dumps(json.loads(whole) | {field: 9_999 if field == "num_hidden_layers" else 2**31 - 1}))
        with pytest.raises(HeadstartError, match=r"safetensors files hold|they do not fit"):
            load_checkpoint(checkpoints[0])
    path.write_text(whole)


def test_a_tokenizer_that_breaks_on_every_text_is_refused(checkpoints: list[Path]) -> None:
    """Its library ends with something that is no `Exception`, which would end the engine."""
    path = checkpoints[0] / "tokenizer.json"
    whole = path.read_text()
    content = json.loads(whole)
    content["post_processor"]["special_tokens"] = {}
    path.write_text(json.dumps(content))
    with pytest.raises(HeadstartError, match=r"tokenizer\.json cannot be read as a tokenizer"):
        load_checkpoint(checkpoints[0])
    path.write_text(whole)
