"""Planned: training from scratch, and training on."""

from headstart.methods.registry import Claim, MethodCard, Paper, planned

planned(
    MethodCard(
        "rewarming",
        stage="pretrain",
        kind="training",
        paper=Paper(
            "Continual Pre-Training of Large Language Models: How to (re)warm your model?",
            arxiv="2308.04014",
            venue="ES-FoMo workshop at ICML 2023",
        ),
        slots=("optimizer",),
        needs=("a checkpoint whose learning rate has decayed",),
        summary="""Continues the pre-training of a model whose learning rate has already decayed, on a new corpus.
        The rate is raised linearly to a maximum once more and decays again along a cosine, with the step counter
        restarted. Loss first rises on the old and on the new data, then falls below that of a run kept at the old
        minimum rate and below that of training from scratch on the new data alone. A larger maximum learns the new
        corpus better and forgets more of the old one.""",
        when_not="""For a short adaptation: for the first thousands of steps the re-warmed model is worse than one
        kept at its minimum rate, and a comparison made there says the opposite.""",
        claim=Claim(
            "re-warming ends below the constant minimum rate and below training from scratch",
            setting="""loss on SlimPajama of Pythia-410M, trained on 300B tokens of the Pile and then on up to 297B
            of SlimPajama; the exact losses were not at hand""",
            source="the paper",
        ),
        composes="`stability-gap`, the cooldown of `meco`, replay of old data.",
        conflicts="Averaged or schedule-free weights, unless the average is reset.",
    ),
    MethodCard(
        "mosaicbert",
        stage="pretrain",
        kind="training",
        paper=Paper(
            "MosaicBERT: A Bidirectional Encoder Optimized for Fast Pretraining",
            arxiv="2312.17482",
            venue="NeurIPS 2023",
        ),
        slots=("objective",),
        summary="""A recipe for an encoder of BERT's size that trains fast, assembled from known parts. ALiBi
        replaces position embeddings, the feed-forward layer is gated, attention is fused, padding tokens are
        removed, and layer norms run in bf16. 30 percent of the tokens are masked, the next-sentence task is
        dropped, and the vocabulary is padded to a multiple of 64. The result serves retrieval and classification,
        for tens of dollars of training.""",
        when_not="For generation.",
        claim=Claim(
            "average GLUE 79.6 in 1.13 hours of training, for about 20 US dollars",
            setting="MosaicBERT-Base pre-trained from scratch on C4, 8 A100 80GB, GLUE development sets",
            source="abstract",
        ),
        composes="`one-epoch`, low-rank optimizers, sequence packing (which leaves no padding to remove).",
        conflicts="None known.",
    ),
    MethodCard(
        "frugal",
        stage="pretrain",
        kind="training",
        paper=Paper(
            "FRUGAL: Memory-Efficient Optimization by Reducing State Overhead for Scalable Training",
            arxiv="2411.07837",
            venue="ICML 2025",
        ),
        slots=("optimizer",),
        summary="""Splits the gradient of the linear weights in two at every step. A small part, a quarter by
        default, is updated by Adam with its moments; the rest, which GaLore and BAdam throw away, is updated by its
        sign, without any state. The active part is drawn anew every 200 steps: whole tensors, columns, or a
        subspace. So every weight moves at every step with full rank, while optimizer memory is that of the small
        part.""",
        when_not="When memory is ample: use AdamW.",
        claim=Claim(
            "closes most of the perplexity gap that GaLore and BAdam leave to Adam",
            setting="""Llama-type models of 60M to 1B pre-trained on C4, a quarter of the linear weights with state;
            the perplexities were not at hand""",
            source="the paper",
        ),
        composes="8-bit Adam for the active part, per-layer updates, activation checkpointing.",
        conflicts="`galore` and `sltrain` are alternatives.",
    ),
    MethodCard(
        "ul2",
        stage="pretrain",
        kind="training",
        paper=Paper("UL2: Unifying Language Learning Paradigms", arxiv="2205.05131", venue="ICLR 2023"),
        slots=("data_stage",),
        summary="""Trains one model on a mixture of denoising tasks: filling short gaps, continuing a prefix, and
        filling long or many gaps. A mode token in front of each example says which task it is. The model does well
        both at understanding and at open generation, and infilling comes for free. Encoder-decoders and prefix
        language models are trained so from the start, and a short extra stage brings it to a finished causal model.""",
        when_not="When only left-to-right likelihood counts, or when text is repeated: the mixture memorises faster.",
        claim=Claim(
            "20B model: state of the art on 50 supervised tasks, zero-shot SuperGLUE above GPT-3",
            setting="""UL2 20B encoder-decoder, fine-tuned per task; GPT-3 with 175B; one-shot summarisation at
            three times the score of T5-XXL; records of 2022""",
            source="abstract",
        ),
        composes="`hlp` and `fim-curriculum` (infilling), `one-epoch`.",
        conflicts="Repeated data (see `token-crisis`).",
    ),
    MethodCard(
        "ernie3",
        stage="pretrain",
        kind="training",
        paper=Paper(
            "ERNIE 3.0: Large-scale Knowledge Enhanced Pre-training for Language Understanding and Generation",
            arxiv="2107.02137",
            venue="arXiv, 2021",
        ),
        slots=("objective",),
        needs=("facts aligned with sentences, for the knowledge task",),
        summary="""One pre-trained model for understanding and for generation. A deep shared trunk learns from every
        task, and two small branches on top, one bidirectional and one left-to-right, learn what differs. Five
        self-supervised tasks feed it, among them one that reads a triple of a knowledge graph beside a sentence
        which expresses it. A progressive schedule raises length, batch, learning rate and dropout together at the
        start.""",
        when_not="For services that only generate: a plain causal model is enough there.",
        claim=Claim(
            "SuperGLUE 90.6 against 89.8 for humans, and 54 Chinese tasks improved",
            setting="the English version on the leaderboard in July 2021; the Chinese model has 10B parameters",
            source="abstract",
        ),
        composes="Sharding, distillation, adapters on the branches.",
        conflicts="Packing across documents, unless memory and masks are reset at their borders.",
    ),
    MethodCard(
        "m3i",
        stage="pretrain",
        kind="training",
        paper=Paper(
            "Towards All-in-one Pre-training via Maximizing Multi-modal Mutual Information",
            arxiv="2211.09807",
            venue="CVPR 2023",
        ),
        slots=("objective",),
        needs=("images, some of them with captions or labels",),
        summary="""Writes masked-image, image-text and label pre-training of a vision backbone as one quantity, the
        mutual information between the representations of an input and of a target. The network sees one input,
        mixed patch by patch from two images, so that each image masks the other. From it several targets must be
        predicted at once: features of the same view, features of another view, and the paired text or class. One
        stage so replaces the usual chain of stages with its hand-over points.""",
        when_not="""When only one kind of supervision exists, where it reduces to a known method, or when compute
        allows only the cheapest objective.""",
        claim=Claim(
            "65.4 mAP on COCO test-dev, 62.5 mAP on LVIS minival, 62.9 mIoU on ADE20K",
            setting="""InternImage-H (1B parameters) pre-trained in one stage; records when published; training cost
            not known here""",
            source="official README",
        ),
        composes="Transformer and convolutional backbones, averaged weights, progressive resolution.",
        conflicts="CutMix and Mixup on the same input.",
    ),
    MethodCard(
        "sltrain",
        stage="pretrain",
        kind="training",
        paper=Paper(
            "SLTrain: a sparse plus low-rank approach for parameter and memory efficient pretraining",
            arxiv="2406.02214",
            venue="NeurIPS 2024",
        ),
        slots=("transform",),
        summary="""Trains every linear weight from scratch as a low-rank product plus a sparse matrix. The places of
        the sparse entries, about 3 percent of the matrix, are drawn at random once and never change; their values
        and the two factors are learned. The sparse part restores the tail of the spectrum that a purely low-rank
        model lacks, so that perplexity comes close to full rank. Weights, gradients and optimizer state all shrink
        with the number of parameters.""",
        when_not="""For speed: the dense weight is formed anew for every product. Merge it once before decoding,
        where that cost dominates.""",
        claim=Claim(
            "up to 73% less memory than Adam for LLaMA 7B: 18.3 GB instead of 67.4 GB",
            setting="pre-training on one A100 80GB with 8-bit Adam and per-layer updates, against full-rank Adam",
            source="abstract, and a figure in the official repository",
        ),
        composes="8-bit Adam, per-layer updates, `spdf`.",
        conflicts="`galore` and `frugal` are alternatives, which keep the dense weights.",
    ),
    MethodCard(
        "instructretro",
        stage="pretrain",
        kind="training",
        paper=Paper(
            "InstructRetro: Instruction Tuning post Retrieval-Augmented Pretraining",
            arxiv="2310.07713",
            venue="ICML 2024",
        ),
        slots=("transform", "data_stage", "recipe"),
        needs=("a store of text, and the neighbours of every training chunk in it",),
        summary="""Takes a finished GPT and adds a small encoder for retrieved text and a cross-attention layer in
        every third decoder layer. Pre-training continues on a modest amount of text, while every chunk of 64 tokens
        may look at neighbours retrieved from a huge store. The model is then instruction-tuned with the retrieval
        path switched off. Afterwards the encoder can be thrown away, and the plain decoder still answers better
        from context in its prompt than a GPT that was trained equally without retrieval.""",
        when_not="""When neighbours of the training text cannot be built, or when only retrieval at inference on a
        frozen model is wanted.""",
        claim=Claim(
            "average gain of 7% on short-form QA, 10% on long-form QA, 16% on summarisation",
            setting="""zero-shot, over the instruction-tuned GPT without retrieval; Retro 48B made from a GPT of 43B
            with 100B more tokens; 8 short-form and 4 long-form QA tasks, 3 summarisation tasks""",
            source="abstract",
        ),
        composes="Any method of the cache, once the retrieval path is off; adapters on the decoder.",
        conflicts="Sequence packing, unless neighbours and the filter of sources follow the packed layout.",
    ),
    MethodCard(
        "galore",
        stage="pretrain",
        kind="training",
        paper=Paper(
            "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection",
            arxiv="2403.03507",
            venue="ICML 2024 (oral)",
        ),
        slots=("optimizer",),
        summary="""Projects the gradient of each large matrix onto its leading singular directions, which are found
        anew every 200 steps. Adam keeps its moments only in that small space. The normalised update is projected
        back and applied to the full weight. So all weights are trained, without adapters, while optimizer memory
        shrinks.""",
        when_not="""When memory is ample: AdamW is simpler and slightly better, and small models gain little.
        Per-layer updates exclude gradient accumulation and global clipping.""",
        claim=Claim(
            "optimizer memory down 65.5%, with 8-bit states 82.5%; 7B on one 24 GB card",
            setting="""LLaMA 1B and 7B pre-trained on C4, up to 19.7B tokens; the 8-bit version is compared with a
            BF16 baseline and needs 63.3% less training memory in all""",
            source="abstract",
        ),
        composes="8-bit states, activation checkpointing; `frugal` adds the directions that it drops.",
        conflicts="`sltrain` (choose one), and `ast` on the same matrices.",
    ),
    MethodCard(
        "jrt",
        stage="pretrain",
        paper=Paper(
            "Just read twice: closing the recall gap for recurrent language models",
            arxiv="2407.05483",
            venue="arXiv, 2024",
        ),
        slots=("prompt_rule", "mixer"),
        exact=False,
        chunking="whole",
        needs=("a recurrent model; for the layer, one trained with it",),
        summary="""Two remedies for recurrent models, which must decide what to keep in a state of fixed size before
        they know the question. The first shows the context twice in the prompt, so that the question is known at
        the second reading, and needs no training. The second is a linear-attention layer that fills its state from
        the whole prompt, not causally, and is trained with next-token and masked-token loss. Decoding stays
        recurrent, in constant memory.""",
        when_not="""For open-ended generation without a prompt, or where doubling the prompt is too dear; the
        doubled prompt must fit the trained length.""",
        claim=Claim(
            "reading twice brings 11.0 points, at 11.9 times FlashAttention-2's prefill throughput",
            setting="""average over 16 recurrent models and 6 in-context tasks (plus or minus 1.3); throughput at
            length 32K, batch 16, H100; the trained layer: 99% of a Transformer's quality at 360M and 96% at 1.3B,
            19.2 times""",
            source="abstract",
        ),
        composes="Sliding-window layers, quantised states, shared prefixes as in `hydragen`.",
        conflicts="Prefix caching by token and chunked prefill within the region that is read as a whole.",
    ),
)
