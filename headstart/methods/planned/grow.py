"""Planned: a larger model from a smaller one."""

from headstart.methods.registry import Claim, MethodCard, Paper, planned

planned(
    MethodCard(
        "gbnn",
        stage="grow",
        kind="training",
        paper=Paper(
            "Sequential Training of Neural Networks with Gradient Boosting",
            arxiv="1909.12098",
            venue="IEEE Access 2023",
        ),
        slots=("recipe",),
        needs=("fixed features: tabular data, or the states of a frozen model",),
        summary="""Trains a wide hidden layer group by group instead of at once. Starting from the best constant, it
        repeatedly fits a tiny network to the residuals of the current model and adds it with a line-search step, as
        in gradient boosting. Since each group is a piece of a network with one hidden layer, the sum is exactly one
        such network. Its last units can be switched off at test time, which gives a knob between speed and
        accuracy.""",
        when_not="For training deep representations: it makes heads on fixed features, and small tabular models.",
        claim=Claim(
            "generalises competitively; part of the units can be switched off without significant loss",
            setting="""classification and regression sets, against networks trained with Adam, L-BFGS and SGD and
            against deep models; the abstract gives no figures""",
            source="abstract",
        ),
        composes="Any frozen encoder, early-exit schedules.",
        conflicts="Joint fine-tuning, which destroys the order of the groups.",
    ),
    MethodCard(
        "gstack",
        stage="grow",
        kind="training",
        paper=Paper(
            "Stacking Your Transformers: A Closer Look at Model Growth for Efficient LLM Pre-Training",
            arxiv="2405.15319",
            venue="NeurIPS 2024 (spotlight)",
        ),
        slots=("transform",),
        needs=("an early checkpoint of the small model, before its learning rate decays",),
        summary="""Trains a shallow model for a short while, copies its whole stack of blocks several times on top
        of itself, and goes on with the deep model. Embeddings, final norm and head are copied as they are, and the
        learning rate is warmed up again. The function changes at once and the loss jumps, and yet this saves most
        compute among the growth operators that the paper compares. A fitted rule gives the number of tokens for the
        small model, and growth by a factor of 2 to 4 is near the best.""",
        when_not="""For growing a finished, strongly trained model by a little, where interpolation or growth that
        keeps the function is safer, and for post-norm networks.""",
        claim=Claim(
            "7B model: the loss of 300B tokens after 194B, a speed-up of 54.6%",
            setting="decoder of 7B against training from scratch on 300B tokens",
            source="abstract",
        ),
        composes="`bert2bert` and `aquilamoe` (width), any optimizer.",
        conflicts="Optimizer state carried over per layer, unless moments are copied alike.",
    ),
    MethodCard(
        "bert2bert",
        stage="grow",
        kind="training",
        paper=Paper("bert2BERT: Towards Reusable Pretrained Language Models", arxiv="2110.07143", venue="ACL 2022"),
        slots=("transform",),
        needs=("a trained smaller model",),
        summary="""Initialises a larger model from a smaller trained one. Hidden size, heads and feed-forward units
        are widened so that the function is preserved, or almost preserved with copies taken from the next layer,
        which breaks the symmetry of identical neurons. Layers are then stacked to the wanted depth. Training the
        large model costs much less than from scratch, and a first stage that trains sub-models saves a little more.""",
        when_not="When only the depth changes: `gstack` does that.",
        claim=Claim(
            "45.2% of the pre-training cost of BERT-Base saved, 47% for GPT-Base",
            setting="""from models of almost half their size; BERT-Base: 4.0 instead of 7.3 x 10^19 FLOPs at an
            average over GLUE and SQuAD of 85.7 (from scratch 85.5)""",
            source="abstract, and the paper's main table",
        ),
        composes="`aquilamoe`, which brings the rule for grouped-query attention.",
        conflicts="Tied embeddings, unless they are untied or the logits rescaled.",
    ),
    MethodCard(
        "aquilamoe",
        stage="grow",
        kind="training",
        paper=Paper(
            "AquilaMoE: Efficient Training for MoE Models with Scale-Up and Scale-Out Strategies",
            arxiv="2408.06567",
            venue="arXiv, 2024",
        ),
        slots=("transform",),
        needs=("a trained smaller model",),
        summary="""A chain from a small dense model to a larger dense one and on to a mixture of experts, each step
        initialised from the one before. The scale-up widens as in bert2BERT, adds depth by interpolating layers
        instead of stacking them, and has a rule for grouped-query attention. The scale-out makes every expert a
        copy of the dense feed-forward layer, beside a fresh router. With renormalised gates the mixture equals the
        dense model at its first step.""",
        when_not="When only the mixture matters and the budget is huge: copied experts limit diversity.",
        claim=Claim(
            "the whole chain takes 4.12 times less time than the mixture from scratch",
            setting="""7B, 16B and 8x16B (about 30B active) on 3.6T, 1.2T and 545B tokens; 3.35 times less compute;
            the baseline is hypothetical: nobody trained the mixture from scratch on all 5345B tokens""",
            source="the technical report",
        ),
        composes="`gstack`, `rewarming`, `pre-gated-moe` for inference.",
        conflicts="A different number of key-value groups in source and target, unless heads are merged first.",
    ),
    MethodCard(
        "learngene-sws",
        stage="grow",
        kind="training",
        paper=Paper(
            "Exploring Learngene via Stage-wise Weight Sharing for Initializing Variable-sized Models",
            arxiv="2404.16897",
            venue="IJCAI 2024",
        ),
        slots=("transform", "recipe"),
        needs=("a larger model that teaches the auxiliary one",),
        summary="""Trains one auxiliary transformer whose layers share their weights within a few stages, taught by
        a larger model. The unique layer of each stage has thus learned to be applied several times in a row at its
        place. A model of any depth is then initialised by repeating the layer of each stage as often as needed,
        untied. A short fine-tuning finishes it, so that one set of layers serves a whole family of depths.""",
        when_not="When one size is enough, or for other widths: the width is that of the auxiliary model.",
        claim=Claim(
            "about 6.6 times less total training than every size from scratch",
            setting="""a family of vision transformers of several depths on ImageNet-1K (the factor depends on its
            size); against pre-training and fine-tuning each: 20 times fewer stored parameters, 10 times less
            pre-training""",
            source="abstract",
        ),
        composes="`well-read` distillation, quantisation, early exit after a stage.",
        conflicts="Growth in width, and pipeline splits inside a stage.",
    ),
)
