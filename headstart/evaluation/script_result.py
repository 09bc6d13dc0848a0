"""What a script under `benchmarks/` has found, as a JSON file that says how to find it again."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from headstart.evaluation.ledger import code_version, now, write_whole
from headstart.evaluation.machine import describe_machine


def write_result(path: Path, script: str, found: dict[str, Any]) -> None:
    """Write what `found` holds beside the command, the commit and the machine.

    Args:
        path: the file; it takes the place of an older one once it is complete.
        script: as it is called from the checkout, such as `benchmarks/soak.py`.
        found: plain data.
    """
    commit, dirty = code_version()
    result = {
        "command": shlex.join(["python", script, *sys.argv[1:]]),
        "commit": commit,
        "dirty": dirty,
        "created": now().isoformat(),
        "machine": describe_machine().model_dump(),
        "torch": torch.__version__,
        **found,
    }
    write_whole(path, json.dumps(result, indent=2) + "\n")
