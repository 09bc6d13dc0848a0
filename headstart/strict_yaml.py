"""YAML that says when a key stands twice, of which the usual loader silently takes the last."""

import re
from typing import Any

import yaml


class DuplicateKeyError(yaml.MarkedYAMLError):
    """A mapping that has a key twice; `problem` is a sentence, `problem_mark` the place."""


class StrictLoader(yaml.SafeLoader):
    """YAML in which a key stands once in its mapping and `3e-4` is a number, as YAML 1.2 has it."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen and key.value != "<<":
                raise DuplicateKeyError(
                    problem=f"the key {key.value!r} stands there twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return node


StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)
