"""Tasks by name, and groups of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from headstart.errors import HeadstartError, did_you_mean
from headstart.evaluation.tasks.base import Task
from headstart.evaluation.tasks.frequency import CommonWords, FrequentWords
from headstart.evaluation.tasks.needles import DepthTask, ruler_needles
from headstart.evaluation.tasks.reading import DocumentQuestions, Fairytale
from headstart.evaluation.tasks.retrieval import KeyValueRetrieval, ManyShot, MultiTurn
from headstart.evaluation.tasks.tracking import VariableTracking


@dataclass(frozen=True)
class Sources:
    """Real text that tasks may use.

    Attributes:
        data: directory with evaluation sets, as `HEADSTART_DATA` names it.
        haystack: prose to hide needles in (default: the story that comes with the package).
        questions: a JSONL file of `documents`, `question` and `answers` for the task `qa`.
    """

    data: Path | None = None
    haystack: str | None = None
    questions: Path | None = None


_NEEDLES = tuple(task.key for task in ruler_needles())
GROUPS: dict[str, tuple[str, ...]] = {
    "ruler": (*_NEEDLES, "vt", "cwe", "fwe", "qa_1", "qa_2"),
    "niah": ("niah_depth", *_NEEDLES),
    "retrieval": ("kv_retrieval", "many_shot", "multi_turn"),
}


def _makers(sources: Sources) -> dict[str, Callable[[], Task]]:
    text = sources.haystack
    makers: dict[str, Callable[[], Task]] = {task.key: lambda task=task: task for task in ruler_needles(text)}
    return makers | {
        "niah_depth": lambda: DepthTask(text=text),
        "vt": VariableTracking,
        "cwe": CommonWords,
        "fwe": FrequentWords,
        "qa_1": lambda: DocumentQuestions("qa_1", data=sources.data),
        "qa_2": lambda: DocumentQuestions("qa_2", data=sources.data, several=True),
        "kv_retrieval": KeyValueRetrieval,
        "many_shot": ManyShot,
        "multi_turn": lambda: MultiTurn(text=text),
        "fairytaleqa": lambda: Fairytale(data=sources.data),
        "qa": lambda: _own_questions(sources.questions),
    }


def _own_questions(path: Path | None) -> Task:
    if path is None:
        raise HeadstartError("the task 'qa' asks your own questions: name their JSONL file with --questions")
    return DocumentQuestions("qa", path=path)


TASKS = tuple(_makers(Sources()))


def task(key: str, sources: Sources | None = None) -> Task:
    """The task of this name.

    Raises:
        HeadstartError: there is none; the nearest name is suggested.
    """
    makers = _makers(sources or Sources())
    if key not in makers:
        raise unknown_task(key)
    return makers[key]()


def resolve(names: Iterable[str], further: Iterable[str] = ()) -> list[str]:
    """Tasks and groups to tasks, each once, in the order given.

    Args:
        names: keys of tasks or groups.
        further: names that are known elsewhere and stay as they are.

    Raises:
        HeadstartError: an unknown name; the nearest is suggested.
    """
    found: dict[str, None] = {}
    for name in names:
        if name not in GROUPS and name not in TASKS and name not in further:
            raise unknown_task(name, further)
        found |= dict.fromkeys(GROUPS.get(name, (name,)))
    return list(found)


def unknown_task(name: str, further: Iterable[str] = ()) -> HeadstartError:
    """The error for a name that is no task."""
    known = [*GROUPS, *TASKS, *further]
    near = did_you_mean(name, known)
    return HeadstartError(f"there is no task {name!r}{near or '; known are ' + ', '.join(known)}")
