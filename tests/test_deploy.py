"""What `deploy/` holds, as far as it can be tried without containers: it parses, and it speaks of things that exist."""

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from headstart import AsyncEngine

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "headstart.json"
# Labels that Prometheus itself adds.
ADDED_LABELS = {"job", "instance", "le"}


@pytest.fixture(scope="module")
def samples(stories: str) -> dict[str, set[str]]:
    """The names of all samples of `/metrics` after some use, with the labels they bear."""
    pytest.importorskip("httpx", reason="talking to a server needs httpx")
    from tests.server.harness import running

    with running(AsyncEngine.from_model(stories, num_pages=64, max_model_len=256)) as server:
        server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 3})
        server.service.metrics.refused("for this test")
        text = server.http.get("/metrics").text
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", ())


def expressions() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in panels(dashboard) for target in panel.get("targets", ())]
    return found + [variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable]


def test_every_query_of_the_dashboard_uses_what_metrics_gives(samples: dict[str, set[str]]) -> None:
    for expression in expressions():
        names = re.findall(r"\b(?:headstart:|process_)\w+", expression)
        assert names, expression
        assert set(names) <= set(samples), expression
        for name, matchers in re.findall(r"((?:headstart:|process_)\w+)\{([^}]*)\}", expression):
            labels = set(re.findall(r"(\w+)\s*=~?", matchers))
            assert labels <= samples[name] | ADDED_LABELS, expression
        for grouping in re.findall(r"by \(([^)]*)\)", expression):
            labels = {label.strip() for label in grouping.split(",")}
            assert labels <= set().union(*(samples[name] for name in names)), expression
        assert all(expression.count(a) == expression.count(b) for a, b in ("()", "{}", "[]"))


def test_counters_are_rated_and_gauges_are_not() -> None:
    for expression in expressions():
        for name in re.findall(r"\b(?:headstart:|process_)\w+", expression):
            rated = re.search(rf"(rate|increase)\({name}[^)]*\[", expression) is not None
            counter = name.endswith(("_total", "_bucket")) and name != "headstart:engine_restarts_total"
            assert rated == counter, expression


def test_panels_do_not_overlap_and_say_what_they_show() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    taken: set[tuple[int, int]] = set()
    identities = [panel["id"] for panel in panels(dashboard)]
    assert len(identities) == len(set(identities))
    for panel in panels(dashboard):
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["title"] and (panel["type"] == "row" or panel["description"].endswith("."))


def test_the_parts_of_the_compose_file_fit_together() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]
    for name, service in services.items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).exists(), (name, source)
        # Nothing is open to other machines unless somebody decides so.
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        assert service["cap_drop"] == ["ALL"]
    build = services["headstart"]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT and (ROOT / build["dockerfile"]).is_file()
    cuda = yaml.safe_load((DEPLOY / "compose.cuda.yaml").read_text())
    assert set(cuda["services"]) <= set(services)
    scraped = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())["scrape_configs"]
    (target,) = scraped[0]["static_configs"][0]["targets"]
    host, _, port = target.partition(":")
    assert host in services and f"EXPOSE {port}" in (DEPLOY / "Dockerfile").read_text()
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"].removeprefix("http://").split(":")[0] in services
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "headstart.yaml").read_text())["providers"]
    mounted = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    folder = next(DEPLOY / here for here, there in mounted.items() if there == provider["options"]["path"])
    assert (
        folder / Path(services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]).name
    ).is_file()


def test_the_image_is_built_from_what_is_there_and_does_not_run_as_root() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    kept = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [shlex.split(line)[1:-1] for line in text.splitlines() if re.match(r"COPY (?!--from)", line)]
    for path in (path for paths in copied for path in paths):
        assert (ROOT / path).exists() and path in kept, path
    final = text[text.rindex("\nFROM ") :]
    user = re.search(r"^USER (\S+)", final, re.MULTILINE)
    assert user and user[1] not in ("root", "0")
    assert set(re.findall(r"^\s+(cpu|cuda)\)", text, re.MULTILINE)) == {"cpu", "cuda"}
    pinned = re.search(r"ARG TORCH=([\d.]+)", text)
    makefile = re.search(r"TORCH \?= torch==([\d.]+)", (ROOT / "Makefile").read_text())
    assert pinned and makefile and pinned[1] == makefile[1]
    entry = re.search(r"ENTRYPOINT (\[.*\])", text)
    assert (
        entry and json.loads(entry[1])[0] in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    )


def test_the_unit_is_what_systemd_takes(tmp_path: Path) -> None:
    text = (DEPLOY / "headstart.service").read_text()
    settings = re.findall(r"^(\w+)=", text, re.MULTILINE)
    assert {"ExecStart", "DynamicUser", "NoNewPrivileges", "ProtectSystem", "TimeoutStopSec"} <= set(settings)
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze, which knows every setting, is not installed")
    unit = tmp_path / "headstart.service"
    # The program itself need not be installed here.
    unit.write_text(text.replace("/opt/headstart/bin/headstart", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    complaints = [line for line in done.stderr.splitlines() if "headstart.service" in line]
    assert done.returncode == 0 and complaints == [], done.stderr
