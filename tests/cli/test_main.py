"""The command as a process: exit codes, no tracebacks, a quick start."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import headstart as package

Run = Callable[..., Any]
COMMAND = [sys.executable, "-m", "headstart.cli.main"]


def test_version(headstart: Run) -> None:
    assert headstart("--version").out == f"headstart {package.__version__}\n"


@pytest.mark.parametrize("command", [[], ["demo"], ["generate"], ["chat"], ["serve"], ["methods"], ["bench"]])
def test_every_command_explains_itself(headstart: Run, command: list[str]) -> None:
    ran = headstart(*command, "--help")
    assert ran.code == 0
    assert "Usage" in ran.out
    assert "--help" in ran.out


def test_help_tells_the_defaults_that_are_not_constants(headstart: Run) -> None:
    assert "[default: the built-in model]" in " ".join(headstart("generate", "--help").out.split())


def test_an_unknown_command_suggests_the_nearest(headstart: Run) -> None:
    ran = headstart("genrate")
    assert ran.code == 2
    assert "generate" in ran.err


def test_help_and_errors_do_not_wait_for_torch() -> None:
    code = (
        "import sys\n"
        "from headstart.cli.main import main\n"
        "sys.argv = ['headstart', '--help']\n"
        "try:\n    main()\n"
        "except SystemExit:\n    print(sorted({'torch', 'transformers', 'fastapi'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", ["generate", "chat", "serve"])
def test_engine_options_are_the_same_everywhere(headstart: Run, command: str) -> None:
    shown = headstart(command, "--help").out
    for option in ("--model", "--use", "--dtype", "--device", "--page-size", "--num-pages", "--kv-cache-memory"):
        assert option in shown


def test_the_commands_load_where_there_is_no_resource_module() -> None:
    """As on Windows."""
    code = "import sys; sys.modules['resource'] = None; import headstart.cli.main, headstart.cli.report; print('ok')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "ok\n"


def test_ctrl_c_while_loading_ends_with_130(headstart: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(package, "LLM", interrupted, raising=False)
    ran = headstart("generate", "x")
    assert (ran.code, ran.out, ran.err) == (130, "", "")


def test_ctrl_c_ends_a_process_with_130_and_no_traceback() -> None:
    arguments = ["generate", "Once", "--ignore-eos", "--max-tokens", "2000"]

    def listen() -> None:
        # A shell starts background jobs deaf to Ctrl-C, and their children inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=listen
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        os.read(process.stdout.fileno(), 1)  # the first text: it is generating
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err


def test_a_reader_that_goes_away_is_no_error() -> None:
    arguments = ["generate", "Once", "--ignore-eos", "--max-tokens", "400"]
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 1)
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
        process.wait(timeout=60)
    assert process.returncode == 1
    assert b"Traceback" not in err


@pytest.mark.parametrize(
    ("redirect", "code"),
    [("> /dev/full", 2), (">&-", 0), ("<&-", 0)],
)
def test_streams_that_are_full_or_closed_give_no_traceback(redirect: str, code: int) -> None:
    command = " ".join([*COMMAND, "generate", "Once", "--max-tokens", "3", redirect])
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert "Traceback" not in ran.stderr
    assert ran.returncode == code


def test_a_terminal_without_unicode_shows_question_marks() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    arguments = [*COMMAND, "generate", "caf\u00e9 \U0001f600", "b", "--max-tokens", "3"]
    ran = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert (ran.returncode, "Traceback" in ran.stderr) == (0, False)


def test_bytes_that_are_no_text_get_a_sentence() -> None:
    ran = subprocess.run([*COMMAND, "generate", "--max-tokens", "3"], capture_output=True, input=b"a\xffb\n")
    assert ran.returncode == 2
    assert b"Traceback" not in ran.stderr
