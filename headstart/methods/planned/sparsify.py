"""Planned: fewer weights."""

from headstart.methods.registry import Claim, MethodCard, Paper, planned

planned(
    MethodCard(
        "average-params",
        stage="sparsify",
        kind="training",
        paper=Paper(
            "The Journey Matters: Average Parameter Count over Pre-training Unifies Sparse and Dense Scaling Laws",
            arxiv="2501.12486",
            venue="ICLR 2025",
        ),
        slots=("callback",),
        summary="""Prunes while pre-training: dense at the start, the smallest weights over all layers removed step
        by step in the middle, sparse at the end. Of 80 schedules tried a near-optimal one begins at a quarter and
        ends at three quarters of the training compute. The final loss then follows the usual scaling law if the
        parameter count is replaced by its average over the run. So the same compute gives the loss of a dense model
        of that average size, and leaves a smaller model to serve.""",
        when_not="For faster training on GPUs without unstructured sparsity: compute is counted, not timed.",
        claim=Claim(
            "one scaling law fits sparse and dense pre-training if size is averaged over the run",
            setting="""decoders of 58M to 468M parameters, up to 20 times the Chinchilla budget of tokens; pairs of
            sparse and dense models of one average size reach one loss""",
            source="abstract and project page",
        ),
        composes="`spdf`, `essential-sparsity`, `perp`; 2:4 kernels at half sparsity for real speed.",
        conflicts="None known.",
    ),
    MethodCard(
        "precropping",
        stage="sparsify",
        kind="training",
        paper=Paper(
            "Structured Pruning is All You Need for Pruning CNNs at Initialization",
            arxiv="2203.02549",
            venue="arXiv, 2022",
        ),
        slots=("transform",),
        summary="""Decides the width of every layer before training. What pruning at initialisation achieves turns
        out to depend on the share of weights left in each layer, hardly on which weights or channels these are. So
        the shares are computed once, from such a pruning method or from a closed-form proxy, and a narrower dense
        network is built with them. It trains and runs dense, at reduced cost on any hardware.""",
        when_not="When a trained model exists: pruning that one is better.",
        claim=Claim(
            "no accuracy lost against weight-level pruning at initialisation, with dense computation",
            setting="""convolutional networks on CIFAR-10 and ImageNet, first version of the paper, whose figures
            were not at hand""",
            source="abstract",
        ),
        composes="Any training recipe, distillation, growth (crop first, grow later).",
        conflicts="`compressor`, which searches another space for the same end.",
    ),
    MethodCard(
        "spdf",
        stage="sparsify",
        kind="training",
        paper=Paper(
            "SPDF: Sparse Pre-training and Dense Fine-tuning for Large Language Models",
            arxiv="2303.10464",
            venue="UAI 2023",
        ),
        slots=("recipe",),
        summary="""Pre-trains with a fixed random mask that keeps only a half or a quarter of every weight matrix.
        Then the mask is dropped and fine-tuning on the task is dense: the zeroed weights start at zero and learn.
        Pre-training takes fewer operations, while scores after fine-tuning stay near those of the dense model.
        Larger models bear more sparsity, and hard tasks with much data suffer first.""",
        when_not="""For wall-clock gains on ordinary GPUs, which do not turn unstructured zeros into time. Adapters
        instead of dense fine-tuning defeat it, since the capacity does not come back.""",
        claim=Claim(
            "2.5 times fewer pre-training FLOPs at 75% sparsity without significant loss",
            setting="GPT-3 XL (1.3B) fine-tuned densely on text generation tasks, against dense pre-training",
            source="abstract",
        ),
        composes="`sltrain`, `reprogram-lt`, `perp`.",
        conflicts="Low-rank adapters in the fine-tuning phase.",
    ),
    MethodCard(
        "efficientllm",
        stage="sparsify",
        kind="training",
        paper=Paper(
            "EfficientLLM: Scalable Pruning-Aware Pretraining for Architecture-Agnostic Edge Language Models",
            arxiv="2502.06663",
            venue="arXiv, 2025",
        ),
        slots=("callback",),
        needs=("a larger checkpoint and much data",),
        summary="""Shrinks a good larger model to a small dense one while its pre-training goes on. The gradients of
        the ordinary loss rate all groups of coupled channels: attention heads, feed-forward units and hidden
        channels. Every one or two steps the least important group is cut out, so that the path of cuts also decides
        the final shape. Afterwards the small model is trained on as usual.""",
        when_not="With a few thousand calibration samples only: use one-shot structured pruning.",
        claim=Claim(
            "1.1B model: mean of 7 common-sense tasks 60.75, Llama-3.2-1B 56.69",
            setting="""zero-shot, after 320B tokens of continued pre-training (59.03 after 50B); reviewers noted
            that the effects of pruning and of the long training are not separated""",
            source="official repository, table",
        ),
        composes="`well-read` distillation, `perp`, quantisation afterwards.",
        conflicts="None known; `average-params` is its unstructured counterpart.",
    ),
    MethodCard(
        "essential-sparsity",
        stage="sparsify",
        kind="training",
        paper=Paper(
            "The Emergence of Essential Sparsity in Large Pre-trained Models: The Weights that Matter",
            arxiv="2306.03805",
            venue="NeurIPS 2023",
        ),
        slots=("transform",),
        summary="""Sets the smallest weights of a pre-trained model to zero in one shot, without data or training,
        then fine-tunes or evaluates under that fixed mask. Quality stays flat up to a knee and falls sharply beyond
        it; the last sparsity before the knee is called essential. One mask serves every downstream task, so the
        cost is one sort. It is the free baseline that any cleverer pruning has to beat.""",
        when_not="""For speed, unless the mask has an N:M pattern or the kernels are sparse, and beyond the knee,
        where better criteria pay.""",
        claim=Claim(
            "about 30 to 50% of the weights can go for at most a 1% drop",
            setting="""BERT-base and -large, OPT-125M to 1.3B, ViT, DINO and others on GLUE, SQuAD, CIFAR and
            Tiny-ImageNet, fine-tuned under the mask; the knee depends on the task: OPT-1.3B cannot pass 40% on RTE""",
            source="the paper",
        ),
        composes="`perp` (retrain a few parameters under the mask), `ast` (starts here), `dsee`.",
        conflicts="Merged adapters that refill the zeros.",
    ),
    MethodCard(
        "ast",
        stage="sparsify",
        kind="training",
        paper=Paper(
            "Pruning Large Language Models with Semi-Structural Adaptive Sparse Training",
            arxiv="2407.20584",
            venue="AAAI 2025",
        ),
        slots=("callback",),
        needs=("the dense model as a teacher, and a few billion tokens",),
        summary="""Retrains a model into 2:4 sparsity without freezing the mask. All weights are kept and updated by
        a straight-through gradient, and every few steps the mask is computed anew from their magnitudes. Weights
        outside the mask decay with a strength that ramps up, so that the search is free early and settles later.
        The dense model teaches the sparse one through its logits, and an optional low-rank side path buys back
        quality.""",
        when_not="""With a one-shot budget: prune once and repair with `perp`. The side path costs part of the speed
        of 2:4 kernels.""",
        claim=Claim(
            "LLaMA2-7B at 2:4: WikiText-2 perplexity 5.82, with side path 5.69 (dense 5.12)",
            setting="""retrained on about 7B tokens with distillation; Wanda without retraining 11.02; zero-shot
            mean 58.62 with side path against 59.78 dense""",
            source="the paper's tables",
        ),
        composes="""Quantisation of the survivors as in `flatquant`, `perp` afterwards, `essential-sparsity` as its
        start.""",
        conflicts="Merging of low-rank adapters, and `galore` on the same matrices.",
    ),
    MethodCard(
        "perp",
        stage="sparsify",
        kind="training",
        paper=Paper(
            "PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs", arxiv="2312.15230", venue="arXiv, 2023"
        ),
        slots=("recipe",),
        needs=("a pruned model",),
        summary="""Repairs a pruned model by training only a tiny, expressive part of it: biases, norm parameters
        and, if wanted, the output head. Where that is not enough, low-rank adapters are added in forms that merge
        back without filling the zeros. Gradients and optimizer state shrink to the trained share, so that large
        models fit on one GPU. The same adapters can be trained block by block against the dense model's outputs,
        which improves one-shot pruning.""",
        when_not="""When full retraining with distillation is affordable (see `ast`), or when masks should go on
        changing.""",
        claim=Claim(
            "0.27 to 0.35% of the parameters match full retraining after pruning",
            setting="""OPT-2.7B, 6.7B, 13B and 30B at various sparsities, up to 30B on one A100 within minutes;
            first version (later versions say 0.01 to 0.05%)""",
            source="abstract",
        ),
        composes="`essential-sparsity` or any other source of masks, quantised frozen weights.",
        conflicts="`galore` and `frugal` on the same tensors; adapters that must stay separate per task.",
    ),
    MethodCard(
        "lottery-ticket",
        stage="sparsify",
        kind="training",
        paper=Paper(
            "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks",
            arxiv="1803.03635",
            venue="ICLR 2019",
        ),
        slots=("recipe",),
        summary="""Finds a sparse subnetwork that, started from its own original initial values, trains alone to the
        accuracy of the dense network in no more steps. The search repeats three moves: train, remove the smallest
        weights, put the survivors back to their values before training. It is the reference experiment of sparse
        training, with which other pruning is compared. The same subnetwork with fresh random values is the control
        that it must beat.""",
        when_not="""For making one large model cheaper: every round is a full training run, and unstructured masks
        bring no speed on dense GPU kernels.""",
        claim=Claim(
            "winning tickets of less than 10 to 20% of the network's size",
            setting="""fully-connected and convolutional networks on MNIST and CIFAR-10; above that size they learn
            faster than the original network and reach higher test accuracy""",
            source="abstract",
        ),
        composes="`essential-sparsity` (one-shot baseline), `perp`, `reprogram-lt`, `precropping`.",
        conflicts="""Methods that change widths or depth during training, such as `gstack` and `kind`, unless masks
        follow.""",
    ),
)
