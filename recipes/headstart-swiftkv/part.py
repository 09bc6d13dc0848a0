"""Takes a part of headstart-base's texts: `python part.py DATA OUT` writes every so manieth document to OUT."""

import lzma
import sys
from itertools import islice
from pathlib import Path

EVERY = {"text/books-core.jsonl.xz": 14, "text/textbooks-openstax.jsonl.xz": 30, "code/code-python.jsonl.xz": 14}


def main(data: Path, out: Path) -> None:
    """Write the parts under the names of the whole."""
    for name, every in EVERY.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        with lzma.open(data / name) as whole, lzma.open(out / name, "w") as part:
            part.writelines(islice(whole, 0, None, every))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
