"""The repository as a newcomer meets it: imports, what the package holds, and every command of the README."""

import contextlib
import io
import os
import re
import resource
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import pytest

from headstart.checkpoints.default import default_checkpoint_path
from headstart.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs" / "getting-started.md"]
SETUP = ("source .venv/bin/activate",)


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def cpu_seconds(code: str) -> float:
    """Processor time that a fresh interpreter takes for `code`; other processes on the machine do not count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run_python(code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_import_loads_neither_torch_nor_transformers() -> None:
    loaded = run_python("import headstart, sys; print(sorted({'torch', 'transformers'} & set(sys.modules)))")
    assert loaded.strip() == "[]"


def test_the_api_does_not_import_transformers() -> None:
    code = "[getattr(headstart, name) for name in headstart.__all__]; print('transformers' in sys.modules)"
    assert run_python(f"import headstart, sys; {code}") == "False\n"


def test_import_with_torch_takes_under_two_seconds() -> None:
    """Best of three. Where PyTorch alone takes most of that, the rest may add a third to it."""
    whole = "import headstart; headstart.LLM"
    if not any(cpu_seconds(whole) < 2.0 for _ in range(3)):
        assert cpu_seconds(whole) < cpu_seconds("import torch") * 4 / 3


def test_the_package_never_imports_transformers() -> None:
    pattern = re.compile(r"^\s*(from|import) transformers\b", re.MULTILINE)
    found = [str(path) for path in (ROOT / "headstart").rglob("*.py") if pattern.search(path.read_text())]
    # The peer in the benchmarks is the one that is measured against.
    assert [path for path in found if "evaluation" not in path] == []


def test_the_changelog_has_a_place_for_what_comes() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in text


def test_the_wheel_holds_the_default_model_and_the_demo_text(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="building a wheel without network needs hatchling")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in default_checkpoint_path().iterdir():
        assert f"headstart/checkpoints/default/{path.name}" in names
    assert "headstart/cli/data/river-bank.txt" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_licence_is_what_pyproject_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_documentation_has_every_page_in_its_menu() -> None:
    listed = re.findall(r"^  - .+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="building the documentation needs the docs extra")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "site" / "write-a-method" / "index.html").is_file()


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*PAGES, *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_layout_table_names_folders_that_exist() -> None:
    folders = re.findall(r"^\| `([^`]+/)` \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(folders) >= 8
    assert all((ROOT / folder).is_dir() for folder in folders)


def blocks(language: str) -> list[tuple[str, str]]:
    """Page name and text of every fenced block of a language."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [(page.name, text) for page in PAGES for text in pattern.findall(page.read_text(encoding="utf-8"))]


def commands() -> list[tuple[str, str]]:
    """Page name and line of every shell command, continued lines joined."""
    return [
        (page, line) for page, text in blocks("sh") for line in text.replace("\\\n", " ").splitlines() if line.strip()
    ]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a `headstart serve` process with the default model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["serve", str(default_checkpoint_path()), "--port", str(port)]
    with subprocess.Popen(
        [sys.executable, "-m", "headstart.cli.main", *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        address = f"http://127.0.0.1:{port}"
        try:
            while True:
                if process.poll() is not None:
                    assert process.stderr is not None
                    pytest.fail(f"headstart serve ended: {process.stderr.read().decode()}")
                with contextlib.suppress(URLError, ConnectionError):
                    urllib.request.urlopen(f"{address}/health").close()
                    break
                time.sleep(0.1)
            yield address
        finally:
            process.terminate()
            process.wait(timeout=60)


def run_headstart(
    arguments: list[str], stdin: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    monkeypatch.setattr(sys, "argv", ["headstart", *arguments])
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    return out


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_shown_works(
    page: str,
    line: str,
    server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Runs the command itself; what is long is made short, and `serve` is the server that the fixture runs."""
    if line in SETUP:
        return
    monkeypatch.chdir(tmp_path)
    Path("story.txt").write_text("The king and the queen went to the sea.\n")
    words = shlex.split(line)
    piped = ""
    if "|" in words:
        at = words.index("|")
        piped = subprocess.run(words[:at], capture_output=True, text=True, check=True).stdout
        words = words[at + 1 :]
    if words[0] == "make":
        subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    elif words[0] == "curl":
        if shutil.which("curl") is None:
            pytest.skip("curl is not installed")
        words = [word.replace("http://127.0.0.1:8000", server) for word in words]
        done = subprocess.run([*words, "--fail-with-body"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        assert '"text"' in done.stdout
    else:
        assert words[0] == "headstart"
        name, arguments = words[1], words[1:]
        if name == "serve":
            assert run_headstart([*arguments, "--help"], "", monkeypatch, capsys)
            return
        if name in ("generate", "chat", "demo"):
            arguments += ["--max-tokens", "3"]
        if name == "bench":
            arguments += ["--help"]
        assert run_headstart(arguments, piped or "Hello!\n", monkeypatch, capsys)


@pytest.mark.parametrize(("page", "text"), blocks("python"))
def test_every_python_example_runs(page: str, text: str, server: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(text.replace("http://127.0.0.1:8000", server), page, "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.strip()


def test_ci_runs_the_linters_and_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    assert {"make lint", "make test"} <= set(script.read_text().splitlines())


def test_make_keeps_the_torch_that_it_installed_first() -> None:
    shown = subprocess.run(
        ["make", "--dry-run", "--always-make", "demo"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    installs = [line for line in shown.splitlines() if "pip install" in line]
    assert "torch==" in installs[0]
    assert all("torch" not in line for line in installs[1:])
