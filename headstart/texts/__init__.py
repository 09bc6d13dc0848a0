"""Public-domain prose that comes with the package: what needles are hidden in, and the long text of the demo."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Prose:
    """A text in plain ASCII, paragraphs parted by empty lines.

    Attributes:
        title, author, year: of the book; in the public domain in the United States.
        text: the chapters.
    """

    title: str
    author: str
    year: int
    text: str


@cache
def wild_wood() -> Prose:
    """How the Mole went to find Mr. Badger, and home for Christmas: three chapters, 79 KB, a story of their own."""
    text = files("headstart.texts").joinpath("wild-wood.txt").read_text(encoding="ascii")
    return Prose("The Wind in the Willows, chapters III to V", "Kenneth Grahame", 1908, text)
