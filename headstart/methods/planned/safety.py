"""Planned: refusals, measured and deepened."""

from headstart.methods.registry import Claim, MethodCard, Paper, planned

planned(
    MethodCard(
        "adaptive-attacks",
        stage="safety",
        kind="analysis",
        paper=Paper(
            "Jailbreaking Leading Safety-Aligned LLMs with Simple Adaptive Attacks",
            arxiv="2404.02151",
            venue="ICLR 2025",
        ),
        summary="""Shows that the refusal rate on plain prompts says little: robustness is the worst case over a set
        of adaptive probes. The probes use what an interface offers: sampling settings, templates, an answer begun
        for the model, and log-probabilities. A strict judge decides what counts as a success. Here it is planned as
        a report on one's own local checkpoints, over a synthetic policy task without harmful content.""",
        when_not="""As a proof of safety: small budgets show little, and real policies belong to curated benchmarks
        under their own access rules.""",
        claim=Claim(
            "nearly 100% attack success on leading safety-aligned models",
            setting="""judged by GPT-4; GPT-3.5 and GPT-4, Llama-2-Chat 7B to 70B, Gemma-7B and R2D2 by templates
            and search guided by log-probabilities, Claude models by transfer or prefilling""",
            source="abstract",
        ),
        composes="`deep-safety`, and every edit, quantisation or pruning, as a check afterwards.",
        conflicts="None known.",
    ),
    MethodCard(
        "deep-safety",
        stage="safety",
        kind="training",
        paper=Paper(
            "Safety Alignment Should Be Made More Than Just a Few Tokens Deep",
            arxiv="2406.05946",
            venue="ICLR 2025 (outstanding paper)",
        ),
        slots=("objective",),
        needs=("an aligned reference model, and benign data that keep it useful",),
        summary="""Refusal training mostly changes the first few tokens of an answer; once those are past, the model
        behaves like its unaligned base. Two remedies go deeper. The first trains on examples in which a violating
        answer has already begun and the model must break off and refuse. The second protects an aligned model in
        later fine-tuning, by a loss that limits how far the probabilities of the early tokens may move.""",
        when_not="As a guarantee: it is a mitigation. Without benign data beside it the model refuses too much.",
        claim=Claim(
            "alignment beyond the first tokens better withstands begun answers and fine-tuning",
            setting="""Llama-2-7B-Chat and Gemma-1.1-7B-IT; before: 96.1% and 96.7% of the refusals on HEx-PHI begin
            with a few stock phrases; attack rates were quoted from memory only and are left out""",
            source="the paper, by way of a review",
        ),
        composes="`adaptive-attacks` to evaluate it; low-rank adapters.",
        conflicts="None known; re-check after quantising, pruning or editing.",
    ),
)
