"""The repository as a newcomer meets it: imports, what the package holds, and what `make` and CI run."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from headstart.checkpoints.default import embedded_checkpoints

ROOT = Path(__file__).parents[1]


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_loads_neither_torch_nor_transformers() -> None:
    loaded = run_python("import headstart, sys; print(sorted({'torch', 'transformers'} & set(sys.modules)))")
    assert loaded.strip() == "[]"


def test_the_api_does_not_import_transformers() -> None:
    code = "[getattr(headstart, name) for name in headstart.__all__]; print('transformers' in sys.modules)"
    assert run_python(f"import headstart, sys; {code}") == "False\n"


def test_the_engine_is_imported_without_what_it_does_not_need() -> None:
    """Servers, kernels, plots and data tools are heavy, and loaded by those who use them."""
    heavy = {"fastapi", "matplotlib", "pandas", "pyarrow", "ray", "scipy", "transformers", "triton", "uvicorn"}
    code = f"print(sorted({{name.partition('.')[0] for name in sys.modules}} & {heavy}))"
    assert run_python(f"import headstart, sys; headstart.LLM; {code}") == "[]\n"


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
    for directory in set(embedded_checkpoints().values()):
        for path in directory.iterdir():
            assert f"headstart/checkpoints/{directory.name}/{path.name}" in names
    assert "headstart/texts/wild-wood.txt" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_licence_is_what_pyproject_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


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
