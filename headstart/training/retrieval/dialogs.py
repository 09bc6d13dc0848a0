"""Short conversations between a user and an assistant, from a file of dialogues such as Taskmaster-4 (CC BY 4.0)."""

import random
from functools import lru_cache

from headstart.errors import HeadstartError
from headstart.training.data.readers import read_records
from headstart.training.retrieval.chat import Message


def dialog(rng: random.Random, paths: tuple[str, ...]) -> list[Message]:
    """One conversation that begins with the user; both sides take turns."""
    if len(paths) != 1:
        raise HeadstartError("the kind dialog needs one file: dialog: [DIALOGUES]")
    return list(rng.choice(_dialogs(paths[0])))


@lru_cache(maxsize=2)
def _dialogs(path: str) -> tuple[tuple[Message, ...], ...]:
    found = []
    for where, _, record in read_records(path):
        try:
            turns = [(str(role), str(text).strip().replace("\u2019", "'")) for role, text in record["turns"]]
        except (KeyError, TypeError, ValueError):
            raise HeadstartError(f'{where} must have a field "turns" with pairs of role and text') from None
        if messages := _alternating(turns):
            found.append(tuple(messages))
    if not found:
        raise HeadstartError(f"{path} holds no conversation that begins with a user")
    return tuple(found)


def _alternating(turns: list[tuple[str, str]]) -> list[Message]:
    """From the user's first words to the assistant's last; what one side says in a row is one turn."""
    messages: list[Message] = []
    for role, said in turns:
        if said and messages and messages[-1][0] == role:
            messages[-1] = (role, f"{messages[-1][1]} {said}")
        elif said and (messages or role == "user"):
            messages.append((role, said))
    return messages[:-1] if messages and messages[-1][0] == "user" else messages
