"""What a page of the documentation asks for in comments, put in their place.

<!-- methods: KEY KEY ... -->          a table of methods with status, claim and measurement
<!-- reference: package.module:Name --> the keys of a file format, or the arguments of a component
<!-- names: package.module:MAPPING -->  the names that a mapping holds
"""

import re

from headstart.docs.catalogue import FOLDER, Measured, cards_of, methods_table
from headstart.docs.reference import DocsError, reference, resolve

_COMMENT = re.compile(r"^<!-- (\w+): (.+?) -->$", re.MULTILINE)


def filled(markdown: str, measured: Measured) -> str:
    """The page with every such comment replaced.

    Raises:
        DocsError: a comment asks for what is not there.
        MethodError: it names a method that is not in the catalogue.
    """
    tables = {resolve(what) for kind, what in _COMMENT.findall(markdown) if kind == "reference"}

    def content(found: re.Match[str]) -> str:
        kind, what = found[1], found[2]
        if kind == "methods":
            return methods_table(cards_of(what.split()), measured, f"{FOLDER}/")
        if kind == "reference":
            return reference(resolve(what), tables)
        if kind == "names":
            return ", ".join(f"`{name}`" for name in resolve(what)) + "."
        raise DocsError(f"the documentation has a comment {found[0]!r}; there are methods, reference and names")

    return _COMMENT.sub(content, markdown)
