"""Planned: writing the answer."""

from headstart.methods.registry import Claim, MethodCard, Paper, planned

planned(
    MethodCard(
        "eft",
        stage="decode",
        paper=Paper(
            "An Emulator for Fine-Tuning Large Language Models using Small Language Models",
            arxiv="2310.12962",
            venue="ICLR 2024",
        ),
        slots=("logit_rule",),
        exact=False,
        needs=("a small model before and after its fine-tuning, with the vocabulary of the large one",),
        summary="""Samples from an approximation of a large model after fine-tuning, without fine-tuning it. At each
        token the change in log-probability that fine-tuning caused in a small model is added to the
        log-probabilities of the large base model. A mixture of several such changes balances behaviours at test
        time. Drafts from the small fine-tuned model, verified against the combination, make it faster without
        changing what is sampled.""",
        when_not="When the large model can be fine-tuned: three models run for every token.",
        claim=Claim(
            "helpfulness and factuality improve without training the large model",
            setting="""Llama-1, Llama-2 and Falcon families, instruction following; scaling fine-tuning mainly
            raises helpfulness, scaling pre-training factuality; scores were not at hand""",
            source="abstract",
        ),
        composes="A quantised large model, constrained decoding, speculation on the large model.",
        conflicts="Models with different vocabularies, and servers that return only the best few logits.",
    ),
    MethodCard(
        "spectr",
        stage="decode",
        paper=Paper(
            "SpecTr: Fast Speculative Decoding via Optimal Transport", arxiv="2310.15141", venue="NeurIPS 2023"
        ),
        slots=("verifier",),
        needs=("a draft model with the target's vocabulary, or another drafter that samples independently",),
        summary="""Extends speculative decoding from one draft to several. Choosing among candidate tokens while
        keeping the target's exact distribution is an optimal transport problem; a rule called k-sequential
        selection solves it approximately, in time near-linear in the vocabulary. Each round drafts several
        sequences independently and verifies all of them in one batched pass of the target. The output is
        distributed exactly as the target's.""",
        when_not="For large batches, where verifying many drafts costs compute instead of idle time.",
        claim=Claim(
            "2.13 times faster than plain decoding, 1.37 times than speculative decoding",
            setting="wall clock on standard benchmarks; the abstract names neither models nor hardware",
            source="abstract",
        ),
        composes="Any drafter that samples independently, the stopping rule of `specdec++` per draft.",
        conflicts="The fixed candidate trees of `medusa`, which are not independent samples.",
    ),
    MethodCard(
        "specdec++",
        stage="decode",
        paper=Paper(
            "SpecDec++: Boosting Speculative Decoding via Adaptive Candidate Lengths",
            arxiv="2405.19715",
            venue="COLM 2025 (ES-FoMo workshop at ICML 2024)",
        ),
        slots=("draft_length",),
        needs=("a draft model, and a head on it trained to predict acceptance",),
        summary="""Decides from token to token how long a draft of speculative decoding should be. The best rule is
        a threshold on the probability that at least one drafted token will be rejected. A small head on the draft
        model predicts the acceptance of each token, and drafting stops when the product of the predictions has
        fallen too low. The output distribution is untouched, since only the stopping changes.""",
        when_not="Where 7 to 11 percent over a well-tuned constant length are not worth a trained head.",
        claim=Claim(
            "2.04 times faster on Alpaca, 2.26 on GSM8K, 2.23 on HumanEval",
            setting="""Llama-2-chat 70B with the 7B as its draft, bf16, 2 A100 80GB; over plain speculative decoding
            7.2, 9.4 and 11.1 percent""",
            source="abstract",
        ),
        composes="`spectr`, `fastdraft`, quantised drafts.",
        conflicts="`pearl`, whose draft length adapts already.",
    ),
    MethodCard(
        "medusa",
        stage="decode",
        paper=Paper(
            "Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads",
            arxiv="2401.10774",
            venue="ICML 2024",
        ),
        slots=("drafter", "verifier", "objective"),
        exact=False,
        needs=("heads trained for the checkpoint",),
        summary="""Replaces the draft model by small heads on the model's last hidden state that guess the tokens
        after the next. The guesses form a tree of candidates, verified in one pass with a tree-shaped attention
        mask, and the longest accepted path is kept. Medusa-1 trains only the heads on a frozen model; Medusa-2
        tunes the model along with them. A typical-acceptance rule trades exact sampling for longer paths.""",
        when_not="""For large batches, where the extra tokens of the tree cost compute. Where samples must follow
        the model's distribution exactly, typical acceptance must be off.""",
        claim=Claim(
            "Medusa-1 over 2.2 times faster, Medusa-2 2.3 to 3.6 times",
            setting="""Vicuna-7B, 13B and 33B and Zephyr-7B, MT-bench, batch 1, A100, against plain decoding; a
            later version says 2.3 to 2.8 times for Medusa-2""",
            source="abstract; the setting from the paper",
        ),
        composes="Quantised models (train the heads on them), paged caches.",
        conflicts="Another drafter at once; kernels without arbitrary masks.",
    ),
)
