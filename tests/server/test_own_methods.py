"""The field `use`: methods of one request's own over HTTP, as far as whoever runs the server allows them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from headstart import LLM, AsyncEngine, SamplingParams
from headstart.errors import HeadstartError
from headstart.server.own_methods import OwnMethods
from tests.server.harness import Running, running

LAZY = "lazyllm:keep=0.5,layers=2"
STORY = "Once upon a time there was a little girl who lived near a big forest. " * 4


@pytest.fixture(scope="module")
def allowing(checkpoint: Path) -> Iterator[Running]:
    """A server with a lossy and an exact method to choose."""
    engine = AsyncEngine.from_model(str(checkpoint), dtype="float32", num_pages=256, max_model_len=512)
    with running(engine, allow_use=["flashattention", LAZY]) as server:
        yield server
        server.wait_until_idle()


def complete(server: Running, use: list[str] | None, **more):
    body = {} if use is None else {"use": use}
    model = server.service.model_name
    return server.openai.completions.create(
        model=model, prompt=STORY, max_tokens=12, temperature=0, extra_body=body, **more
    )


def test_neighbours_get_each_what_an_engine_of_its_methods_gives(allowing: Running, checkpoint: Path) -> None:
    """At once, from many threads; the usage tells for each whether it is exact, and what it found."""
    params = SamplingParams(max_tokens=12, temperature=0)
    stacks: list[list[str] | None] = [None, [], ["flashattention"], [LAZY]]
    want = {}
    for use in stacks[1:]:
        settings = {"dtype": "float32", "num_pages": 256, "max_model_len": 512}
        want[str(use)] = LLM(str(checkpoint), use=use, **settings).generate(STORY, params)[0].outputs[0].text
    want["None"] = want["[]"]
    assert want["[]"] == want["['flashattention']"] != want[str([LAZY])]
    with ThreadPoolExecutor(8) as pool:
        for use, answer in [(use, pool.submit(complete, allowing, use)) for use in stacks * 6]:
            found = answer.result()
            assert found.choices[0].text == want[str(use)]
            assert found.usage.exact == (use != [LAZY])
            assert use != [LAZY] or found.usage.prompt_tokens_details.cached_tokens == 0
    assert complete(allowing, None).usage.prompt_tokens_details.cached_tokens > 0


def test_every_way_to_ask(allowing: Running) -> None:
    """Chat, responses, streams and several prompts take it; embeddings have nothing of the kind."""
    model = allowing.service.model_name
    messages = [{"role": "user", "content": STORY}]
    chat = allowing.openai.chat.completions.create(
        model=model, messages=messages, max_tokens=4, temperature=0, extra_body={"use": [LAZY]}
    )
    response = allowing.openai.responses.create(
        model=model, input=STORY, max_output_tokens=4, temperature=0, extra_body={"use": [LAZY]}
    )
    assert chat.usage.exact is response.usage.exact is False
    assert chat.choices[0].message.content == response.output_text
    last = list(complete(allowing, [LAZY], stream=True, stream_options={"include_usage": True}))[-1]
    assert last.usage.exact is False
    both = allowing.post("/v1/completions", {"prompt": ["Once", "A dog"], "use": [LAZY], "max_tokens": 2}).json()
    assert len(both["choices"]) == 2 and both["usage"]["exact"] is False
    refused = allowing.post("/v1/embeddings", {"input": "Once", "use": [LAZY]})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "use"


def test_what_may_be_chosen_is_told(allowing: Running, server: Running) -> None:
    (model,) = allowing.openai.models.list().data
    assert model.allow_use == ["flashattention", LAZY]
    assert server.http.get("/v1/models").json()["data"][0]["allow_use"] == []


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (["sarathi-serve"], "sarathi-serve cannot be one request's own, since one plan serves all requests"),
        (["swiftkv:depth=2"], "swiftkv cannot be one request's own, since all requests share one KV cache"),
        (["hip"], "would have to be started with --allow-use hip"),
        (["lazyllm"], f"is not among what requests may choose here, which is flashattention, {LAZY}"),
        (["lazyllm:keep=/etc/passwd"], "is not among what requests may choose"),
        (["lazzyllm"], "there is no method 'lazzyllm'; did you mean 'lazyllm'"),
        (["meco"], "not in the engine"),
        (["flashattention", "flashattention"], "flashattention and flashattention both fill the attention.prefill"),
        ("flashattention", "use must be a list, not 'flashattention'"),
        ([7], "must be a string, not 7"),
        (["flashattention"] * 9, "use must be at most 8 long"),
        (["x" * 300], "at most 256 characters"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_rest_is_refused(allowing: Running, use: object, sentence: str) -> None:
    """With 400, the field's name and the reason, also where the answer would be a stream."""
    for stream in (False, True):
        answer = allowing.post("/v1/completions", {"prompt": "Once", "use": use, "stream": stream})
        assert answer.status_code == 400
        assert sentence in answer.json()["error"]["message"]
        assert answer.json()["error"]["param"].startswith("use")


def test_without_the_flag_nobody_chooses(server: Running) -> None:
    for use in (["flashattention"], [], ["nothing"]):
        with pytest.raises(openai.BadRequestError, match="would have to be started with --allow-use") as refusal:
            complete(server, use)
        assert refusal.value.param == "use" and refusal.value.code == "method_not_allowed"
    assert complete(server, None).choices


def test_the_operator_may_say_it_in_full_and_the_client_in_short() -> None:
    methods = OwnMethods(["flashattention"])
    assert methods.check(["flashattention:rows=128,keys=256"]) == methods.check([" flashattention "])


@pytest.mark.parametrize(
    ("allowed", "sentence"),
    [
        (["sarathi-serve"], "--allow-use sarathi-serve: sarathi-serve cannot be one request's own"),
        (["lazillm"], "did you mean 'lazyllm'"),
        (["lazyllm:keep=2"], "keep must be shares"),
    ],
)
def test_a_flag_that_cannot_be_honoured_stops_the_start(allowed: list[str], sentence: str) -> None:
    with pytest.raises(HeadstartError, match=sentence):
        OwnMethods(allowed)
