"""Scores of an output against the expected answers, each from 0 to 100.

`match_all` and `match_part` are RULER's two conventions; F1, ROUGE-L and normalised exact match are those of SQuAD and
of the FairytaleQA paper (arXiv 2203.13947).
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def match_all(answers: Sequence[str], output: str) -> float:
    """The share of the answers that occur in the output, whatever their case."""
    said = output.lower()
    return 100.0 * sum(answer.lower() in said for answer in answers) / len(answers)


def match_part(answers: Sequence[str], output: str) -> float:
    """100 if any of the answers occurs in the output, whatever its case."""
    said = output.lower()
    return 100.0 * any(answer.lower() in said for answer in answers)


def exact_match(answers: Sequence[str], output: str) -> bool:
    """Whether the output's first line names all the answers, in any order, and nothing else."""
    lines = output.strip().splitlines()
    said = re.split(r",|\band\b|\s", lines[0].strip(" .").lower()) if lines else []
    words = [word.strip(" .") for word in said if word.strip(" .")]
    expected = [word for answer in answers for word in re.split(r",|\band\b|\s", answer.lower()) if word.strip(" .")]
    return Counter(words) == Counter(expected)


def normalised(text: str) -> list[str]:
    """Lower-case words without punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def normalised_match(answers: Sequence[str], output: str) -> float:
    """100 if the output is one of the answers, apart from case, punctuation and articles."""
    return 100.0 * any(normalised(answer) == normalised(output) for answer in answers)


def token_f1(answers: Sequence[str], output: str) -> float:
    """The best F1 between the words of the output and of an answer."""
    return max(_f1(normalised(answer), normalised(output)) for answer in answers)


def rouge_l(answers: Sequence[str], output: str) -> float:
    """The best ROUGE-L F1 (longest common subsequence of words) between the output and an answer."""
    return max(_rouge_l(_words(answer), _words(output)) for answer in answers)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _f1(expected: list[str], said: list[str]) -> float:
    common = (Counter(expected) & Counter(said)).total()
    return 100.0 * 2 * common / (len(expected) + len(said)) if common else 100.0 * (expected == said)


def _rouge_l(expected: list[str], said: list[str]) -> float:
    if not expected or not said:
        return 100.0 * (expected == said)
    row = [0] * (len(said) + 1)
    for word in expected:
        above = row
        row = [0]
        for i, other in enumerate(said):
            row.append(above[i] + 1 if word == other else max(above[i + 1], row[i]))
    return 100.0 * 2 * row[-1] / (len(expected) + len(said))
