"""The wordings of needle tasks: `{a}` is what is known (as "access code"), `{k}` of whom, `{v}` the value."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "number": (
        "access code",
        "locker number",
        "account number",
        "ticket number",
        "serial number",
        "membership number",
        "order number",
        "secret number",
        "lucky number",
        "phone extension",
        "invoice number",
        "parcel number",
        "key number",
        "reference number",
    ),
    "uuid": ("secret code", "tracking code", "session token", "device code", "transaction code", "record number"),
    "word": (
        "password",
        "code word",
        "secret word",
        "call sign",
        "nickname",
        "favourite thing",
        "project name",
        "hidden word",
        "signal word",
    ),
}
"""What a value can be, by its kind; "special magic number", "... uuid", "... word" come beside these."""

STATEMENTS = (
    "A special note: the {a} for {k} is {v}.",
    "The {a} for {k} is {v}.",
    "The {a} for {k} is: {v}.",
    "One {a} for {k} is: {v}.",
    "Among the {a}s for {k} is: {v}.",
    "Remember that the {a} for {k} is {v}.",
    "Note that {k} has the {a} {v}.",
    "For {k}, the {a} is {v}.",
    "If anybody asks for the {a} for {k}, say {v}.",
    "It was written down that {v} is the {a} for {k}.",
    "The book gives {v} as the {a} for {k}.",
    "Do not forget: {a} for {k}, {v}.",
    "Nobody knew why, but the {a} for {k} had always been {v}.",
    "On the wall somebody had written that the {a} for {k} was {v}.",
    "The {a} that belongs to {k} is {v}.",
    "Here is a fact worth keeping: {v} is the {a} for {k}.",
    "Please keep in mind that the {a} given to {k} is {v}.",
    "When it comes to {k}, the {a} is simply {v}.",
    "[{k}] {a} = {v}",
    "{a} ({k}): {v}",
    "* {a} for {k}: {v}",
    "NOTE | {k} | {a} | {v}",
)

OPENINGS = (
    "Some {a}s are hidden in the following text. Remember them, for you will be asked about them afterwards.",
    "A {a} is mentioned somewhere in the text below. Read carefully and keep it in mind.",
    "Below is a text with one or more {a}s in it. Memorise them.",
    "Read this. Somewhere in it there are {a}s that you will need later.",
    "The text that follows contains {a}s. Learn them by heart; a question comes at the end.",
    "Look out for every {a} in the text.",
    "There is important information hidden in a lot of irrelevant text. Find it and remember it.",
    "Read the text and answer what is asked about it.",
    "Answer with what the text says.",
    "You will be asked about a {a}. It is somewhere in here.",
    "Please read the following document. Pay attention to anything that looks like a {a}.",
    "Here is a long text. Most of it does not matter, but the {a}s do.",
    "Use only the text below to answer.",
    "",
    "",
)

QUESTIONS = (
    "What is the {a} for {k}?",
    "What is the {a} for {k} mentioned in the text?",
    "What is the {a} for {k} that the text above mentions?",
    "Which {a} belongs to {k}?",
    "Find the {a} for {k}.",
    "Tell me the {a} for {k}.",
    "According to the text, what is the {a} for {k}?",
    "Look up the {a} for {k} and repeat it.",
    "I need the {a} for {k}.",
    "Give the {a} that is written down for {k}.",
    "Do you remember the {a} for {k}?",
    "Quote the {a} for {k} exactly.",
    "The text gives one {a} for {k}. Which one?",
    "What does the text say the {a} for {k} is?",
    "{k}: which {a}?",
    "{a} for {k}?",
)

LEADS = (
    "The {a} for {k} is",
    "The {a} for {k} mentioned in the text is",
    "According to the text, the {a} for {k} is",
    "It is",
    "For {k}, the {a} is",
)

PLURAL_QUESTIONS = (
    "What are all the {a}s for {k} mentioned in the text?",
    "What are all the {a}s for {k} that the text above mentions?",
    "Which {a}s belong to {k}? Name all of them.",
    "Find every {a} for {k}.",
    "List all {a}s for {k}.",
    "Tell me all the {a}s for {k} in the order of the text.",
    "According to the text, what are the {a}s for {k}?",
    "Look up the {a}s for {k} and repeat them all.",
    "I need every {a} for {k}.",
    "Give all the {a}s that are written down for {k}.",
    "Do you remember the {a}s for {k}? Say all of them.",
    "The text gives several {a}s for {k}. Which ones?",
    "{k}: which {a}s?",
    "All {a}s for {k}?",
)

PLURAL_LEADS = (
    "The {a}s for {k} are",
    "The {a}s for {k} mentioned in the text are",
    "According to the text, the {a}s for {k} are",
    "They are",
    "For {k}, the {a}s are",
)

PASSKEYS = ("pass key", "pin code", "door code", "vault code", "secret number", "password", "code word", "signal word")

PASSKEY_STATEMENTS = (
    "The {a} is {v}. Remember it. {v} is the {a}.",
    "The {a} is {v}.",
    "Remember this: the {a} is {v}.",
    "Keep {v} in mind, it is the {a}.",
    "{v} is the {a}. Do not forget it.",
    "By the way, the {a} has been changed to {v}.",
    "Somebody whispered that the {a} was {v}.",
    "IMPORTANT: the {a} is {v}.",
    "The note in the drawer said that {v} was the {a}.",
    "You will need the {a} later: {v}.",
    "{a} = {v}",
    "[{a}: {v}]",
)

PASSKEY_QUESTIONS = (
    "What is the {a}?",
    "What is the {a} in the text?",
    "Tell me the {a}.",
    "Which {a} was given?",
    "Find the {a} and repeat it.",
    "According to the text, what is the {a}?",
    "I have forgotten the {a}. What was it?",
    "Give me the {a}.",
    "Do you remember the {a}?",
    "Quote the {a} exactly.",
    "The text mentions a {a}. Which one?",
    "{a}?",
)

PASSKEY_LEADS = ("The {a} is", "It is", "The {a} in the text is", "According to the text, the {a} is")
