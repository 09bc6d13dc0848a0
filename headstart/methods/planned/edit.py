"""Planned: changing single facts."""

from headstart.methods.registry import Claim, MethodCard, Paper, planned

planned(
    MethodCard(
        "mend",
        stage="edit",
        kind="training",
        paper=Paper("Fast Model Editing at Scale", arxiv="2110.11309", venue="ICLR 2022"),
        slots=("editor",),
        needs=("a set of example edits for the meta-training",),
        summary="""Learns to turn the raw fine-tuning gradient of one wanted correction into a weight update that
        stays local and holds for paraphrases. The gradient of a linear layer is a sum of rank-one terms, so that a
        small network can map the two vectors of each term instead of the whole matrix. After a meta-training of
        hours an edit costs one backward pass and that small network. The base weights themselves are never trained.""",
        when_not="For hundreds of edits at once, where success falls, or without a set of edits to train on.",
        claim=Claim(
            "GPT-Neo 2.7B: edit success .81 at a drawdown of .057 (fine-tuning .55 at .195)",
            setting="""continuations of Wikitext, success on equivalent prompts, drawdown on unrelated text; T5-XL
            on question answering (zsRE): .88 against .58""",
            source="the paper's tables",
        ),
        composes="Quantised frozen layers below the edited ones.",
        conflicts="Merged adapters on the same matrices, tied feed-forward layers, caches kept across an edit.",
    ),
)
