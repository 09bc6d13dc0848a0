"""Synthetic long-context training documents: facts to find, follow, count and copy, and questions over stories.

`make` gives any number of them; `describe` shows one to a human.
"""

from headstart.training.retrieval.chat import chat_document
from headstart.training.retrieval.generate import DEFAULT_WEIGHTS, KINDS, describe, make
from headstart.training.retrieval.haystack import Haystack
from headstart.training.retrieval.ruler import TokenEstimate

__all__ = ["DEFAULT_WEIGHTS", "KINDS", "Haystack", "TokenEstimate", "chat_document", "describe", "make"]
