"""Planned: measuring and planning."""

from headstart.methods.registry import Claim, MethodCard, Paper, planned

planned(
    MethodCard(
        "algoperf",
        stage="analysis",
        kind="analysis",
        paper=Paper("Benchmarking Neural Network Training Algorithms", arxiv="2306.07179", venue="arXiv, 2023"),
        summary="""A protocol that answers whether a training method really trains faster. Every method must reach
        fixed validation targets on several workloads, on fixed hardware, and wall-clock time is what counts. Tuning
        is part of the method: a common search space with few trials, or none at all. Times per workload are
        combined by performance profiles.""",
        when_not="When only small workloads can be afforded: they keep the rules, not the conclusions.",
        claim=Claim(
            "no update rule is best everywhere; with few trials most miss some targets",
            setting="""8 update rules as baselines on 8 workloads (images, speech, translation, graphs, clicks), 8
            V100 16GB""",
            source="the paper",
        ),
        composes="Every training method, as its judge.",
        conflicts="Tuning by hand per workload.",
    ),
    MethodCard(
        "w2pgnn",
        stage="analysis",
        kind="analysis",
        paper=Paper(
            "When to Pre-Train Graph Neural Networks? From Data Generation Perspective!",
            arxiv="2303.16458",
            venue="KDD 2023",
        ),
        slots=("scorer",),
        summary="""Answers, before any graph network is trained, whether pre-training on a pool of graphs is likely
        to help a given downstream set. The pool is summarised by a few graphons, which are edge-probability
        functions that stand for large graphs, and the downstream set by one. The score says how close mixtures of
        the pool's graphons come to that of the downstream set in Gromov-Wasserstein distance. It ranks sources, or
        advises against a run.""",
        when_not="Where the signal lies in node features or labels: it looks at topology alone.",
        claim=Claim(
            "the score tells when pre-training pays, and which data to choose for it",
            setting="node and graph classification; correlations were quoted from memory only and are left out",
            source="abstract",
        ),
        composes="Any selection of sources, as an offline scorer.",
        conflicts="None known.",
    ),
    MethodCard(
        "reprogram-lt",
        stage="analysis",
        kind="analysis",
        paper=Paper(
            "Reprogramming under constraints: Revisiting efficient and reliable transferability of lottery tickets",
            arxiv="2308.14969",
            venue="arXiv, 2023",
        ),
        needs=("dense and sparse checkpoints that match upstream",),
        summary="""Asks whether sparse lottery tickets that match the dense model upstream transfer equally well
        when the weights stay frozen. Only an input program, such as a visual prompt, or a linear head is trained.
        The gap to the dense model grows with sparsity and is worst with few samples, and calibration suffers. It is
        a measurement: a list of checks for a compressed checkpoint before it is offered as a base for transfer.""",
        when_not="When the sparse model does not match the dense one upstream: one then measures plain damage.",
        claim=Claim(
            "lottery tickets do not transfer everywhere as dense models do, least with few samples",
            setting="ResNet-50 and its tickets, visual prompting and linear probing; the abstract gives no figures",
            source="abstract",
        ),
        composes="`lottery-ticket`, `essential-sparsity`, `perp`, quantised checkpoints, as their report.",
        conflicts="Methods that retrain masked weights during transfer.",
    ),
    MethodCard(
        "intrinsic-dim",
        stage="analysis",
        kind="analysis",
        paper=Paper(
            "Intrinsic Dimensionality Explains the Effectiveness of Language Model Fine-Tuning",
            arxiv="2012.13255",
            venue="ACL 2021",
        ),
        slots=("transform",),
        summary="""Measures how many free numbers a fine-tuning task needs. All weights move only inside a random
        subspace of few dimensions through the pre-trained point. The smallest dimension that reaches 90 percent of
        full fine-tuning is the intrinsic dimension. It compares checkpoints and tasks, and falls with longer
        pre-training and larger models.""",
        when_not="""As a way of tuning in production: it stores almost nothing, but is slower and takes more memory
        than full fine-tuning.""",
        claim=Claim(
            "200 trained numbers reach 90% of full fine-tuning",
            setting="RoBERTa on MRPC, projected at random into the full space of parameters",
            source="abstract",
        ),
        composes="Quantised base weights; comparisons with `dsee` and adapters of equal count.",
        conflicts="Sharded parameters and fused optimizers.",
    ),
)
