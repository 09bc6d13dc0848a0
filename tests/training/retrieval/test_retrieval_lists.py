"""Records, variables, counts, labels and copies: every answer is worked out again from the context."""

import re
from collections import Counter

import pytest
from reading import UUID, Asked, bare, documents, last_match, pattern, prose, split_list, turns

from headstart.training.retrieval import copying, counting, mapping, records, variables
from headstart.words import pool, split_of

HAYSTACK = prose()
KEY = rf"(?:{UUID}|[a-z]+-[a-z]+|\d{{6}}|[A-Z][a-z]+ \d\d|[A-Z]{{2}}\d{{4}})"
VALUE = rf"(?:{UUID}|\d+|[a-z]+-[a-z]+|[a-z]+ [a-z]+)"
ENTRIES = [pattern(each.entry.replace("{{", "<<").replace("}}", ">>"), k=KEY, v=VALUE) for each in records._FORMATS]
ENTRIES = [re.compile(each.pattern.replace("<<", r"\{").replace(">>", r"\}")) for each in ENTRIES]


def parsed_entries(context: str) -> list[tuple[str, str]]:
    """By the form that explains most of the context."""
    found = [[(m["k"], m["v"]) for m in each.finditer(context)] for each in ENTRIES]
    return max(found, key=len)


def unquoted(answer: str) -> str:
    return answer.removesuffix('"')


def test_values_are_those_of_their_keys() -> None:
    forward = [pattern(each, k=KEY) for each in records._QUESTIONS]
    backward = [pattern(each, v=VALUE) for each in records._REVERSE_QUESTIONS]
    leads = [pattern(each, k=KEY, v=VALUE) for each in (*records._LEADS, *records._REVERSE_LEADS)]
    several = 0
    for document in documents("key_value", 60, HAYSTACK):
        for asked in turns(document):
            entries = parsed_entries(asked.context)
            assert len({key for key, _ in entries}) == len(entries) == len({value for _, value in entries})
            question = last_match(forward + backward, asked.question)
            if question.re in forward:
                assert unquoted(bare(asked.answer, leads)) == dict(entries)[question["k"]]
            else:
                assert unquoted(bare(asked.answer, leads)) == {value: key for key, value in entries}[question["v"]]
            several += len(entries) > 10
    assert several > 50


def test_keys_are_of_the_training_half() -> None:
    evaluation = {word for kind in ("adjective", "noun", "name") for word in pool(kind, "evaluation")}
    for document in documents("key_value", 40, HAYSTACK):
        for key, value in parsed_entries(document.text):
            for word in re.findall(r"[A-Za-z]+", f"{key} {value}"):
                if len(word) > 2 and not re.search(UUID, f"{key} {value}"):
                    assert word not in evaluation
                    assert split_of(word) == "train"


NAME = r"(?:[A-Z]{5}|[a-z]{3,4}|[a-z]+_[a-z]+|[A-Z]\d\d)"


def assignments(context: str) -> dict[str, str]:
    """The final value of every variable, by the pair of statements that explains most."""
    best: dict[str, str] = {}
    for start, step in variables._STATEMENTS:
        values: dict[str, str] = {}
        first, then = pattern(start, x=NAME, v=r"\d{5}"), pattern(step, x=NAME, y=NAME)
        matches = sorted([*first.finditer(context), *then.finditer(context)], key=lambda match: match.start())
        for match in matches:
            if match.re is first:
                values[match["x"]] = match["v"]
            elif match["y"] in values:
                values[match["x"]] = values[match["y"]]
        best = max(best, values, key=len)
    return best


def test_variables_hold_what_the_assignments_say() -> None:
    find = [pattern(each, v=r"\d{5}") for each in variables._FIND]
    value = [pattern(each, x=NAME) for each in variables._VALUE]
    find_leads = [pattern(each, v=r"\d{5}", n=r"\d") for each in variables._FIND_LEADS]
    leads = find_leads + [pattern(each, x=NAME) for each in variables._VALUE_LEADS]
    for document in documents("variables", 80, HAYSTACK):
        for asked in turns(document):
            values = assignments(asked.context)
            question = last_match(find + value, asked.question)
            answer = bare(asked.answer, leads)
            if question.re in find:
                if " and " not in answer and "," not in answer:
                    answer = answer.replace(" ", ", ")
                assert split_list(answer) == [name for name, held in values.items() if held == question["v"]]
            else:
                assert answer == values[question["x"]]


def listed(asked: Asked) -> Counter[str]:
    """Counts of the words of a list, not of the words around it."""
    context = asked.context
    for sentence in (*counting._OPENINGS, *counting._CODED_OPENINGS):
        context = context.replace(sentence, " ") if sentence else context
    for each in (*HOW_OFTEN, *MOST):
        context = each.sub(" ", context)
    context = context.replace("Context: ", "")
    context = re.sub(r"</?[a-z]+>|\"[a-z]+\":|<\|[a-z]+\|>|[A-Z].*$|[=#]+ .*$", " ", context, flags=re.M)
    return Counter(re.findall(r"[a-z]+", context))


HOW_OFTEN = [pattern(each, w="[a-z]+") for each in counting._HOW_OFTEN]
MOST = [pattern(each, n=r"\d+") for each in counting._MOST + counting._MOST_ONE]


@pytest.mark.parametrize("kind", ["common_words", "frequent_words"])
def test_the_most_frequent_words_are_clearly_so(kind: str) -> None:
    leads = [re.compile(r"(The [^:]*?( is|are:)|They are:|Answer: the words that occur most often are)")]
    for document in documents(kind, 60, HAYSTACK, questions=1):
        (asked,) = turns(document)
        answer = bare(asked.answer, leads)
        words = re.findall(r"[a-z]+", answer)
        counts = listed(asked)
        least = min(counts[word] for word in words)
        assert len(set(words)) == len(words)
        assert least > max(count for word, count in counts.items() if word not in words), (
            asked,
            counts.most_common(12),
        )
        if kind == "frequent_words":
            assert words == [word for word, _ in counts.most_common(len(words))]


def test_counts_are_right() -> None:
    seen = 0
    for document in documents("common_words", 200, HAYSTACK, length=600, questions=3):
        for asked in turns(document)[1:]:
            word = last_match(HOW_OFTEN, asked.question)["w"]
            number = re.search(r"\d+", asked.answer)
            assert number and int(number[0]) == listed(asked)[word]
            seen += 1
    assert seen > 10


CLASSES = (
    re.compile(r"[A-Z][a-z]+ and [A-Z][a-z]+"),
    re.compile(r"[A-Z][a-z]+ to [A-Z][a-z]+"),
    re.compile(r"the [a-z]+ [a-z]+"),
    re.compile(r"\d{5}"),
    re.compile(r"to [a-z]+ a [a-z]+"),
    re.compile(r"[A-Z]{5}"),
    re.compile(r"[a-z]+, [a-z]+"),
)
PHRASE = re.compile(r"[a-z]+(?: [a-z]+){1,2}")
ITEM = "(?:" + "|".join(each.pattern for each in (*CLASSES, PHRASE)) + ")"


AT_END = r"\s*(?:<\|end\|><\|assistant\|>)?$"
ASK_LABEL = [pattern(each, x=ITEM) for each in mapping._QUESTIONS]
CONTINUE = [re.compile(pattern(each.format(x="{x}").rstrip(), x=ITEM).pattern + AT_END) for each in mapping._FORMS]


def test_labels_follow_from_the_examples() -> None:
    label = r"(?:\d|[A-Z]{4}|[A-Z]|[a-z]+)"
    leads = [pattern(each, x=ITEM) for each in mapping._LEADS]
    seen_again = by_kind = by_noun = 0
    for document in documents("mapping", 80, HAYSTACK):
        for asked in turns(document):
            forms = [
                re.compile(rf"^{pattern(form.format(x='{x}'), x=ITEM).pattern}(?P<label>{label})(?!\w)", re.M)
                for form in mapping._FORMS
            ]
            context = asked.context.replace("<|user|>", "").replace("Context: ", "")
            pairs = max(([(m["x"], m["label"]) for m in each.finditer(context)] for each in forms), key=len)
            answer = re.findall(label, bare(asked.answer, leads))[-1] if asked.answer else ""
            question = "\n".join(asked.question.rstrip().splitlines()[-3:]).replace("What belongs where?", "")
            in_words = any(each.search(question) for each in ASK_LABEL)
            item = last_match(ASK_LABEL if in_words else CONTINUE, question)["x"]
            shown = dict(pairs)
            if item in shown:
                assert answer == shown[item]
                seen_again += 1
            elif all(PHRASE.fullmatch(other) and other[:4] != "the " for other in shown):
                noun = item.split()[-1]
                assert {of for other, of in pairs if other.split()[-1] == noun} == {answer}
                by_noun += 1
            else:
                (shape,) = [each for each in CLASSES if each.fullmatch(item)]
                assert {of for other, of in pairs if shape.fullmatch(other)} == {answer}
                by_kind += 1
    assert min(seen_again, by_kind, by_noun) > 40


def test_copies_are_word_for_word() -> None:
    paragraph = [pattern(each, s=r'[^"]+') for each in copying._PARAGRAPH]
    following = [pattern(each, s=r'[^"]+') for each in copying._NEXT]
    named = [pattern(each, k="[a-z]+-[a-z]+") for each in copying._LIST]
    seen: Counter[str] = Counter()
    for document in documents("copying", 120, HAYSTACK):
        for asked in turns(document):
            answer = bare(asked.answer, [re.compile(r"The list [a-z]+-[a-z]+ reads:")])
            paragraphs = [part.strip() for part in asked.context.split("\n\n")]
            if any(each in asked.question for each in copying._WHOLE):
                assert answer in asked.context
                assert len(answer) > 0.35 * len(document.text)
                seen["whole"] += 1
                continue
            question = last_match(paragraph + following + named, asked.question)
            if question.re in named:
                forms = [pattern(each, k=re.escape(question["k"]), w=r"[\w, ]+") for each in copying._LIST_UNITS]
                assert {m["w"] for each in forms for m in each.finditer(asked.context)} == {answer}
                seen["list"] += 1
            else:
                (place,) = [n for n, part in enumerate(paragraphs) if part.startswith(question["s"])]
                later = question.re in following
                assert paragraphs[place + later].split("\n")[0] == answer
                seen["next" if later else "paragraph"] += 1
    assert min(seen[each] for each in ("whole", "list", "next", "paragraph")) > 5, seen
