"""The documentation: every command and example on its pages works as it stands, and what pages say is so."""

import argparse
import contextlib
import io
import json
import math
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args
from urllib.error import URLError

import pytest
import typer
from safetensors import safe_open

from headstart.checkpoints.default import default_checkpoint_path
from headstart.cli.main import app, main
from headstart.cli.methods import as_dict
from headstart.engine.args import EngineArgs
from headstart.evaluation import ledger
from headstart.evaluation.crossover import sentence
from headstart.evaluation.ledger import Crossover
from headstart.evaluation.rig import spec as rig
from headstart.methods import registry
from headstart.server import body, protocol

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

PARSED_ONLY = {"bench", "serve"}
"""Commands that take long or never end; what they do is tested beside their code."""
SHORT = {
    "generate": ["--max-tokens", "3"],
    "chat": ["--max-tokens", "3"],
    "demo": ["--words", "500"],
    "demo rag": ["--documents", "2", "--tokens", "32"],
    "eval": ["--quick", "--task", "bits_per_byte", "--lengths", "128"],
    "--fit": ["--fit-lengths", "96,160", "--threads", "1"],
    "train": ["phases.main.tokens=16k", "phases.main.eval.tokens=256", "compile=false"],
}
"""What makes a command short, by its name or one of its options."""
PLACEHOLDERS = ("DIR", "KEY", "RECIPE")
"""A command with one of these is an example, whose options alone can be checked."""


@dataclass(frozen=True)
class Shown:
    """A command on a page, continued lines joined."""

    page: str
    line: str

    @property
    def words(self) -> list[str]:
        """As a shell parts them."""
        return shlex.split(self.line)

    @property
    def headstart(self) -> list[str] | None:
        """The arguments of `headstart`, behind a pipe or under torchrun too; None for other programs."""
        words = self.words
        if "|" in words:
            words = words[words.index("|") + 1 :]
        if words[0] == "torchrun":
            assert words[:5] == ["torchrun", "--nproc-per-node", "2", "-m", "headstart.cli.main"], self.line
            return words[5:]
        return words[1:] if words[0] == "headstart" else None


def blocks(page: Path, language: str) -> list[str]:
    """The text of every fenced block of a language."""
    pattern = re.compile(rf"^```{language}(?: [^\n]*)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return pattern.findall(page.read_text(encoding="utf-8"))


def commands(page: Path) -> list[Shown]:
    """Every shell command of a page, in their order."""
    lines = [line for text in blocks(page, "sh") for line in text.replace("\\\n", " ").splitlines()]
    return [Shown(page.name, line) for line in lines if line.strip()]


COMMANDS = [shown for page in PAGES for shown in commands(page)]
INLINE = [
    Shown(page.name, line)
    for page in PAGES
    for line in re.findall(r"`(headstart [^`]+)`", page.read_text(encoding="utf-8"))
]
CARDS = [Shown(card.key, line) for card in registry.catalogue() for line in as_dict(card, [])["commands"]]


PROGRAM: Any = typer.main.get_command(app)


def parse(arguments: list[str]) -> Any:
    """Let the command line read its arguments, without doing anything; what it does not know is an error."""
    command = PROGRAM
    context = command.make_context("headstart", list(arguments))
    while hasattr(command, "commands"):
        words = [*getattr(context, "_protected_args", []), *context.args]
        if not words and command.invoke_without_command:
            break
        name, command, rest = command.resolve_command(context, words)
        context = command.make_context(name, rest, parent=context)
    return context


def ids(shown: Shown) -> str:
    """How a case is named."""
    return f"{shown.page}: {shown.line}"


@pytest.mark.parametrize("shown", COMMANDS, ids=ids)
def test_every_command_shown_is_one_that_the_command_line_knows(shown: Shown) -> None:
    """Unknown commands and options fail; so do targets of make and extras that are not there."""
    if shown.headstart is not None:
        parse(shown.headstart)
    elif shown.words[0] == "make":
        subprocess.run(["make", "--dry-run", *shown.words[1:]], cwd=ROOT, check=True, capture_output=True)
    elif shown.words[0] == "pip":
        extra = re.fullmatch(r"pip install -e '\.\[(.+)\]'", shown.line)
        assert extra and extra[1] in EXTRAS
    else:
        assert shown.words[0] == "curl" or shown.line == "source .venv/bin/activate"


def test_every_command_named_in_a_text_is_one_that_the_command_line_knows() -> None:
    """Its arguments may be left out there."""
    for shown in INLINE:
        assert shown.headstart is not None
        try:
            parse([word for word in shown.headstart if word != "--help"])
        except typer.BadParameter as error:
            assert type(error).__name__ == "MissingParameter", f"{shown.line}: {error}"


@pytest.mark.parametrize("script", ["soak", "http_overhead"])
def test_benchmarks_shown_are_called_as_they_can_be(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their options are read; what they measure takes minutes."""

    class Parsed(Exception):
        pass

    def parse(parser: argparse.ArgumentParser) -> None:
        read(parser)
        raise Parsed

    read = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    pages = [ROOT / "docs" / "operate.md", ROOT / "benchmarks" / f"{script}.py"]
    lines = [line.split() for page in pages for line in page.read_text(encoding="utf-8").splitlines()]
    shown = [words[1:] for words in lines if words[:2] == ["python", f"benchmarks/{script}.py"]]
    assert len(shown) >= 2
    for words in shown:
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(Parsed):
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")


def test_unknown_options_do_not_pass_the_check() -> None:
    """What the test above stands on."""
    for arguments in (["serve", "--prot", "1"], ["bench", "metod", "KEY"], ["ledger", "show"]):
        with pytest.raises(Exception, match=r"No such|Missing"):
            parse(arguments)


def test_every_command_on_a_card_is_one_that_the_command_line_knows() -> None:
    for shown in CARDS:
        assert shown.headstart is not None
        parse(shown.headstart)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_work_one_after_another(
    page: Path, workspace: Path, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a copy of the checkout, what is long made short."""
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("HOME", str(workspace))
    for shown in commands(page):
        if shown.words[0] == "curl":
            ask(shown, server)
        arguments = shown.headstart
        if arguments is None or shown.words[0] == "torchrun" or arguments[0] in PARSED_ONLY:
            continue
        if set(arguments) & set(PLACEHOLDERS):
            continue
        words = [" ".join(arguments[:2])] if arguments[:2] == ["demo", "rag"] else arguments
        short = [] if "--dry-run" in arguments else [more for word in words for more in SHORT.get(word, [])]
        code, out, err = run([*arguments, *short], piped(shown), monkeypatch, capsys)
        assert code == 0, f"{shown.line}: {err}"
        assert out.strip() or arguments[0] == "export", shown.line


def piped(shown: Shown) -> str:
    """What the command reads from standard input."""
    if "|" not in shown.words:
        return "Hello!\n"
    before = shown.words[: shown.words.index("|")]
    return subprocess.run(before, capture_output=True, text=True, check=True).stdout


def ask(shown: Shown, server: str) -> None:
    """Send the request to the server of the tests."""
    if shutil.which("curl") is None:
        return
    words = [word.replace("http://127.0.0.1:8000", server) for word in shown.words]
    done = subprocess.run([*words, "--fail-with-body"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert '"text"' in done.stdout


def run(
    arguments: list[str], stdin: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit status, output and errors of `headstart ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["headstart", *arguments])
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    monkeypatch.setenv("COLUMNS", "200")
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """What the commands of the pages find in a checkout, where they may write."""
    for name in ("headstart", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docs" / "examples", tmp_path / "docs" / "examples")
    (tmp_path / "story.txt").write_text("The king and the queen went to the sea.\n")
    (tmp_path / "manuals").mkdir()
    (tmp_path / "manuals" / "pump.txt").write_text("The pump stands in the cellar, behind the door.\n")
    return tmp_path


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a `headstart serve` process with the default model, and with what a page lets requests choose."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (allowing,) = (shown for page in PAGES for shown in commands(page) if "--allow-use" in shown.words)
    command = ["serve", str(default_checkpoint_path()), "--port", str(port), *allowing.words[3:]]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            [sys.executable, "-m", "headstart.cli.main", *command], stdout=subprocess.DEVNULL, stderr=log
        ) as process,
    ):
        address = f"http://127.0.0.1:{port}"
        try:
            while True:
                if process.poll() is not None:
                    log.seek(0)
                    pytest.fail(f"headstart serve ended: {log.read().decode()}")
                with contextlib.suppress(URLError, ConnectionError):
                    urllib.request.urlopen(f"{address}/health").close()
                    break
                time.sleep(0.1)
            yield address
        finally:
            process.terminate()
            process.wait(timeout=60)


@pytest.fixture
def unregistered() -> Iterator[None]:
    """Forget afterwards what examples have registered."""
    registry.catalogue()
    before = dict(registry._METHODS)
    yield
    registry._METHODS.clear()
    registry._METHODS.update(before)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_the_python_of_a_page_runs_from_top_to_bottom(
    page: Path, server: str, unregistered: None, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"__name__": "example"}
    for text in blocks(page, "python"):
        exec(compile(text.replace("http://127.0.0.1:8000", server), page.name, "exec"), names)
    assert capsys.readouterr().out.strip()


def test_what_the_readme_shows_of_the_demo_is_what_it_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """But for numbers and what the model writes."""
    (shown,) = (text for text in blocks(ROOT / "README.md", "text") if text.startswith("Headstart: "))
    _, out, _ = run(["demo", *SHORT["demo"]], "", monkeypatch, capsys)
    printed = {without_numbers(line) for line in out.splitlines()}
    fixed = [line for line in shown.splitlines() if re.match(r"(Headstart|\d+\. |Next|  headstart |first token)", line)]
    assert len(fixed) == 8
    assert [line for line in fixed if without_numbers(line) not in printed] == []


def without_numbers(line: str) -> str:
    """The line with every measured number masked; `ms` and `s` are one."""
    return re.sub(r"# m?s\b", "# s", re.sub(r"\d[\d,.]*", "#", line)).rstrip()


def test_files_shown_on_pages_are_the_files_of_the_examples() -> None:
    found = {}
    for page in PAGES:
        pattern = re.compile(r'^```\w+ title="(.+?)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
        found |= dict(pattern.findall(page.read_text(encoding="utf-8")))
    assert sorted(found) == sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "examples").iterdir())
    for name, text in found.items():
        assert (ROOT / name).read_text(encoding="utf-8") == text


def test_the_menu_has_every_page() -> None:
    listed = re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    generated = {"catalogue/index.md", "measurements.md"}
    assert sorted(set(listed) - generated) == sorted(page.name for page in DOCS)


def test_links_of_the_readme_lead_somewhere() -> None:
    """Those of the other pages are checked by the strict build."""
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert "://" in target or (ROOT / target).exists(), target


def test_folders_and_files_of_the_architecture_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:headstart|recipes|tests)/[\w./-]*)`", text)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []
    packages = {f"headstart/{path.parent.name}/" for path in (ROOT / "headstart").glob("*/__init__.py")}
    assert packages - {"headstart/texts/", "headstart/words/"} <= set(named)


def test_the_readme_counts_the_methods_as_the_catalogue_does() -> None:
    count = sum(card.paper is not None for card in registry.catalogue())
    assert f"{count} published methods" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_describes_the_built_in_model_as_it_is() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    directory = default_checkpoint_path()
    config = json.loads((directory / "config.json").read_text())
    assert f"default, up to {config['max_position_embeddings']} tokens" in text
    weights = 0
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            weights += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    assert f"The model has {weights / 1e6:.2g} million weights" in text


def test_limits_and_defaults_on_the_page_of_the_server_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    args = EngineArgs(device="cpu")
    for row in (
        f"| body | {body.MAX_BODY_BYTES >> 20} MiB |",
        f"| prompts in one request | {protocol.MAX_PROMPTS:,} |",
        f"| `stop` | {protocol.MAX_STOPS} strings of at most {protocol.MAX_STOP_CHARACTERS} characters |",
        f"| `cache_salt` | {protocol.MAX_SALT_CHARACTERS} characters |",
        f"| `use` | {protocol.MAX_METHODS} methods of at most {protocol.MAX_METHOD_CHARACTERS} characters |",
        f"| `logprobs`, `top_logprobs`, `prompt_logprobs` | {protocol.MAX_LOGPROBS} |",
        f"| requests that run at once | {args.max_num_seqs} |",
        f"| {args.step_tokens} on a CPU, ",
        f"| from the memory; {args.tokens_per_page} on a CPU, ",
    ):
        assert row in page


def test_the_page_about_measuring_explains_every_verdict_and_sentence() -> None:
    page = (ROOT / "docs" / "measure.md").read_text(encoding="utf-8")
    for verdict in (*get_args(ledger.Verdict), *get_args(rig.Verdict)):
        assert re.search(rf"^\| (\w+, )?{verdict}(, \w+)? \|", page, re.MULTILINE), verdict
    series: list[tuple[ledger.Verdict, ...]] = list(product(get_args(ledger.Verdict), repeat=3))
    found = [Crossover.of("TTFT", "a", "b", dict(zip((256, 1024, 4096), each, strict=True))) for each in series]
    said = {re.sub(r"\d[\d,]*", "#", sentence(each)) for each in found}
    explained = re.search(r"\| the sentence says \|.*?\n\n", page, re.DOTALL)
    assert explained is not None
    phrases = [re.sub(r"\d[\d,]*", "#", line.split(" | ")[0][2:]) for line in explained[0].splitlines()[2:] if line]
    assert all(any(phrase in each for each in said) for phrase in phrases)
    assert all(any(phrase.partition(" #")[0] in each for phrase in phrases) for each in said)
