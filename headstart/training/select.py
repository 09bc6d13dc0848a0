"""Naming parts of any model: parameters and modules by pattern, and where its blocks, embeddings and norms are."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from headstart.errors import HeadstartError, did_you_mean


class SelectError(HeadstartError):
    """A pattern that names nothing, or a model whose parts cannot be found."""


@dataclass(frozen=True)
class Select:
    """Names parameters or modules by shell patterns (`layers.*.mlp.*`), less those of `exclude`.

    Every pattern has to match something: a typing error is no empty selection.
    """

    patterns: tuple[str, ...]
    exclude: tuple[str, ...] = ()

    def names(self, known: Iterable[str]) -> list[str]:
        """The known names that are meant, in their order.

        Raises:
            SelectError: a pattern matches none of them; the nearest is named.
        """
        names = list(known)
        for pattern in (*self.patterns, *self.exclude):
            if not any(fnmatchcase(name, pattern) for name in names):
                shapes = sorted({re.sub(r"\.\d+\.", ".*.", name) for name in names})
                hint = did_you_mean(pattern, shapes) or f"; there are: {', '.join(shapes[:12])}"
                raise SelectError(f"the pattern {pattern!r} matches nothing in this model{hint}")
        return [name for name in names if _matches(name, self.patterns) and not _matches(name, self.exclude)]

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters that are meant, by name."""
        known = dict(model.named_parameters())
        return {name: known[name] for name in self.names(known)}

    def modules(self, model: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...] = nn.Module) -> dict:
        """The modules of a kind that are meant, by name."""
        known = {name: module for name, module in model.named_modules() if isinstance(module, kind)}
        return {name: known[name] for name in self.names(known)}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


@dataclass(frozen=True)
class Anatomy:
    """Where the parts of a language model are, by module name.

    Attributes:
        embeddings: tables that are looked up by token.
        blocks: the repeated layers, in order.
        final_norms: norms outside of the blocks.
        head: the output layer; None where it is the embedding itself.
    """

    embeddings: tuple[str, ...]
    blocks: tuple[str, ...]
    final_norms: tuple[str, ...]
    head: str | None

    @classmethod
    def of(cls, model: nn.Module) -> "Anatomy":
        """Find the parts of a `Decoder` or of any Hugging Face model.

        Raises:
            SelectError: there is no repeated block.
        """
        lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
        outer = [
            (name, found)
            for name, found in lists
            if len({type(child) for child in found}) == 1 and not any(name.startswith(f"{o}.") for o, _ in lists)
        ]
        if not outer:
            raise SelectError("this model has no list of equal layers; name its parts by pattern instead")
        name, blocks = max(outer, key=lambda item: sum(p.numel() for p in item[1].parameters()))
        inside = f"{name}."
        embeddings, norms, head = [], [], None
        for path, module in model.named_modules():
            if path.startswith(inside):
                continue
            kind = type(module).__name__.lower()
            if "embedding" in kind and hasattr(module, "weight"):
                embeddings.append(path)
            elif "norm" in kind:
                norms.append(path)
            elif path.rpartition(".")[2] in ("lm_head", "embed_out", "output") and hasattr(module, "weight"):
                head = path
        return cls(tuple(embeddings), tuple(f"{name}.{i}" for i in range(len(blocks))), tuple(norms), head)
