"""Quality tasks, made at any length for any tokenizer: the same seed gives the same bytes."""

from headstart.evaluation.tasks.base import Example, MissingDataError, Task, TextEncoder, TooShortError
from headstart.evaluation.tasks.registry import GROUPS, TASKS, Sources, resolve, task

__all__ = [
    "GROUPS",
    "TASKS",
    "Example",
    "MissingDataError",
    "Sources",
    "Task",
    "TextEncoder",
    "TooShortError",
    "resolve",
    "task",
]
