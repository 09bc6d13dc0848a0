"""The server against its own OpenAPI document: no failure, and no answer that the document does not describe.

`HEADSTART_API_CASES=2000 pytest tests/server/test_openapi.py` runs as many cases.
"""

import os
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings

from headstart.server.openapi import openapi_document
from tests.server.harness import Running, running
from tests.server.scripted import scripted_model

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")

CASES = int(os.environ.get("HEADSTART_API_CASES", "100"))
SCHEMA = schemathesis.openapi.from_dict(openapi_document("scripted"))
OPERATIONS = {found.ok().label: found.ok() for found in SCHEMA.get_all_operations()}
POSTS = [label for label in OPERATIONS if label.startswith("POST")]
CHECKS = schemathesis.checks.CHECKS.get_by_names(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "negative_data_rejection",
    ]
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    # A short model, so that the longest answers are short.
    engine, _ = scripted_model(tmp_path_factory.mktemp("models") / "scripted", "hermes", longest=256)
    with running(engine) as server:
        yield server
        assert server.http.get("/health").status_code == 200
        server.wait_until_idle()


def test_the_document_names_every_path(model: Running) -> None:
    document = model.http.get("/openapi.json").json()
    assert document == openapi_document("scripted")
    for path, methods in document["paths"].items():
        for method in methods:
            found = model.http.request(method, path.format(name="scripted"), json={})
            assert found.status_code in (200, 400)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("label", [label for label in OPERATIONS if label not in POSTS])
def test_questions_are_answered_as_described(model: Running, label: str) -> None:
    operation = OPERATIONS[label]
    case = operation.Case(path_parameters={"name": "scripted"} if "{name}" in label else {})
    case.validate_response(case.call(base_url=model.url), checks=CHECKS[:4])


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("label", POSTS)
def test_bodies_are_answered_as_described(model: Running, label: str, mode) -> None:
    seen: Counter[int] = Counter()

    @settings(
        max_examples=-(-CASES // (2 * len(POSTS))),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(case=OPERATIONS[label].as_strategy(generation_mode=mode))
    def run(case) -> None:
        response = case.call(base_url=model.url)
        seen[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    run()
    assert set(seen) <= {200, 400, 404}
