"""Tenants: whose key it is, what each may use, and that nobody meets another's cache."""

import hashlib
import json
import random
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from headstart import AsyncEngine, HeadstartError
from headstart.server.body import MAX_BODY_BYTES
from headstart.server.tenants import Allowance, Limits, read_tenants, tenants_of_keys
from tests.server.harness import Running, running

FILE = """
tenants:
  acme:
    keys: [sk-acme, "sha256:{hashed}"]
    max_prompt_tokens: 50
    max_body_bytes: 4000
  hasty: {{keys: [sk-hasty], request_timeout: 0.3}}
  trial: {{keys: [sk-trial], requests_per_minute: 3}}
  tokens: {{keys: [sk-tokens], tokens_per_minute: 40}}
  single: {{keys: [sk-single], max_concurrent_requests: 1}}
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    text = FILE.format(hashed=hashlib.sha256(b"sk-hashed").hexdigest())
    tenants = read_tenants(write(tmp_path_factory.mktemp("tenants") / "tenants.yaml", text), ["sk-flag"])
    engine = AsyncEngine.from_model(str(checkpoint), dtype="float32", max_num_batched_tokens=8)
    with running(engine, tenants=tenants) as server:
        yield server
        server.wait_until_idle()


def post(server: Running, key: str, **body: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return server.http.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 2} | body, headers=headers)


def refused(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == code and "\n" not in error["message"]


def test_every_key_opens_and_no_other(server: Running) -> None:
    for key in ("sk-acme", "sk-hashed", "sk-tokens", "sk-single", "sk-flag"):
        assert post(server, key, max_tokens=1).status_code == 200
    for key in ("sk-acm", "sk-acme1", "x", "sha256:" + hashlib.sha256(b"sk-hashed").hexdigest()):
        refused(post(server, key), 401, "invalid_api_key")


def test_no_tenant_finds_what_another_has_read(server: Running) -> None:
    """The same prompt again: a hit for the same tenant with the same salt, and for nobody else."""
    rng = random.Random(1)
    prompt = [1, *(rng.randrange(300, 400) for _ in range(48))]

    def cached(key: str, **body: Any) -> int:
        usage = post(server, key, prompt=prompt, max_tokens=1, **body).json()["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    assert cached("sk-acme") == 0
    assert cached("sk-hashed") == 48, "a tenant's keys share its cache"
    assert cached("sk-flag") == 0
    assert cached("sk-flag") == 48
    assert cached("sk-flag", cache_salt="mine") == 0
    assert cached("sk-flag", cache_salt="mine") == 48
    acme = hashlib.sha256(b"tenant:acme").hexdigest()
    for guess in (acme, "acme", ""):
        assert cached("sk-single", cache_salt=guess) == 0, "a salt of one's own does not reach another's"


def test_requests_per_minute(server: Running) -> None:
    statuses = [post(server, "sk-trial", max_tokens=1).status_code for _ in range(3)]
    assert statuses == [200, 200, 200]
    response = post(server, "sk-trial")
    refused(response, 429, "rate_limit_exceeded")
    assert 1 <= int(response.headers["retry-after"]) <= 20
    assert post(server, "sk-flag").status_code == 200, "another tenant is not held up"
    headers = {"Authorization": "Bearer sk-trial"}
    assert server.http.get("/v1/models", headers=headers).status_code == 200, "looking costs nothing"


def test_tokens_per_minute(server: Running) -> None:
    assert post(server, "sk-tokens", prompt=[1] * 10, max_tokens=40, ignore_eos=True).status_code == 200
    response = post(server, "sk-tokens")
    refused(response, 429, "rate_limit_exceeded")
    assert int(response.headers["retry-after"]) >= 15


def test_requests_at_once(server: Running) -> None:
    headers = {"Authorization": "Bearer sk-single"}
    body = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "stream": True, "n": 32}
    with server.http.stream("POST", "/v1/completions", json=body, headers=headers) as response:
        lines = response.iter_lines()
        next(lines)
        refused(post(server, "sk-single"), 429, "concurrency_limit_exceeded")
    server.wait_until_idle()
    assert post(server, "sk-single").status_code == 200


def test_prompt_body_and_time(server: Running) -> None:
    refused(post(server, "sk-acme", prompt=[1] * 51), 400, "context_length_exceeded")
    assert post(server, "sk-acme", prompt=[1] * 50, max_tokens=1).status_code == 200
    headers = {"Authorization": "Bearer sk-acme"}
    talk = {"messages": [{"role": "user", "content": "a " * 80}], "max_tokens": 1}
    for path, body in (("/tokenize", {"prompt": "a b c d " * 20}), ("/v1/chat/completions", talk)):
        refused(server.http.post(path, json=body, headers=headers), 400, "context_length_exceeded")
    endless = {"prompt": "x" * 3900}
    answer = server.http.post("/tokenize", json=endless, headers=headers)
    refused(answer, 400, "context_length_exceeded")
    assert "3900 characters" in answer.text and answer.json()["error"]["param"] == "prompt"
    for declared in (True, False):
        data = json.dumps({"prompt": "x" * 5000}).encode()
        content = data if declared else iter([data[:100], data[100:]])
        headers = {"Authorization": "Bearer sk-acme", "Content-Type": "application/json"}
        refused(server.http.post("/v1/completions", content=content, headers=headers), 413, "too_large")
    slow = {"prompt": [5] * 40, "max_tokens": 400, "ignore_eos": True, "n": 20}
    refused(post(server, "sk-hasty", **slow), 504, "request_timeout")
    headers = {"Authorization": "Bearer sk-hasty"}
    with server.http.stream("POST", "/v1/completions", json=slow | {"stream": True}, headers=headers) as response:
        lines = [line for line in response.iter_lines() if line]
    # On a machine that is busy the time is over before the stream has begun.
    last = lines[0] if response.status_code == 504 else lines[-2].removeprefix("data: ")
    assert json.loads(last)["error"]["code"] == "request_timeout"
    server.wait_until_idle()


def test_allowance_fills_evenly_and_may_go_into_debt() -> None:
    now = [0.0]
    allowance = Allowance(60, lambda: now[0])
    assert allowance.wait(60) == 0
    allowance.spend(90)
    assert allowance.wait(1) == pytest.approx(31)
    now[0] = 31
    assert allowance.wait(1) == 0
    now[0] = 1000
    assert allowance.wait(60) == 0 and allowance.wait(61) == pytest.approx(1)
    assert Allowance(None).wait(10**9) == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tenants: [", "line"),
        ("{}", "tenants"),
        ("tenants: {}", "tenants"),
        ("tenants: {a: {keys: [x]}}\nmore: 1", "alone"),
        ("tenants: {a: {}}", "keys"),
        ("tenants: {a: {keys: []}}", "keys"),
        ("tenants: {a: {keys: [1]}}", "text"),
        ("tenants: {a: {keys: ['']}}", "empty"),
        ("tenants: {a: {keys: ['sha256:12']}}", "64"),
        ("tenants: {a: {keys: [x]}, b: {keys: [x]}}", "its own"),
        ("tenants: {a: {keys: [x], request_per_minute: 1}}", "requests_per_minute"),
        ("tenants: {a: {keys: [x], requests_per_minute: 0}}", "at least 1"),
        ("tenants: {a: {keys: [x], requests_per_minute: yes}}", "at least 1"),
        ("tenants: {a: {keys: [x], request_timeout: .inf}}", "above 0"),
        (f"tenants: {{a: {{keys: [x], max_body_bytes: {MAX_BODY_BYTES + 1}}}}}", "server reads"),
        ("tenants: {a: {keys: [x]}, a: {keys: [y]}}", "'a' stands there twice"),
        ("tenants: {a: {keys: [x], max_prompt_tokens: 1, max_prompt_tokens: 2}}", "stands there twice"),
        ("tenants: {a: {keys: [x], keys: [y]}}", "stands there twice"),
        ("tenants: {a: {keys: [x, x]}}", "a has too"),
        ("!!python/object:os.system {}", "YAML"),
    ],
)
def test_a_file_that_is_not_understood_is_refused_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(HeadstartError, match=said) as caught:
        read_tenants(write(tmp_path / "t.yaml", text))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(HeadstartError, match="nowhere"):
        read_tenants(Path("/nowhere.yaml"))


def test_keys_by_flag_are_tenants_of_their_own() -> None:
    tenants = tenants_of_keys(["a", "b", "a"], Limits(max_prompt_tokens=3))
    first, second = tenants.find(b"a"), tenants.find(b"b")
    assert first is not None and second is not None and first.salt != second.salt
    assert len(tenants.all) == 2 and tenants.find(b"c") is None
    assert tenants_of_keys([]).anonymous is not None


def test_a_crowd_is_counted_exactly(checkpoint: Path) -> None:
    """Of many requests at once no more than the limit are ever answered at once, and the count returns to nothing."""
    tenants = tenants_of_keys(["k"], Limits(max_concurrent_requests=4))
    with running(AsyncEngine.from_model(str(checkpoint), dtype="float32"), tenants=tenants) as server:
        statuses: list[int] = []
        body = {"max_tokens": 100, "ignore_eos": True}
        threads = [
            threading.Thread(target=lambda: statuses.append(post(server, "k", **body).status_code)) for _ in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(statuses) <= {200, 429} and statuses.count(200) >= 4
        tenant = tenants.find(b"k")
        assert tenant is not None and tenant.active == 0
        assert post(server, "k").status_code == 200
