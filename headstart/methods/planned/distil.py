"""Planned: a smaller or faster model from a larger one."""

from headstart.methods.registry import Claim, MethodCard, Paper, planned

planned(
    MethodCard(
        "fastdraft",
        stage="distil",
        kind="training",
        paper=Paper(
            "FastDraft: How to Train Your Draft", arxiv="2411.11055", venue="ACL 2025 (ENLSP workshop at NeurIPS 2024)"
        ),
        slots=("recipe", "drafter"),
        needs=("about ten billion tokens of text, and the target to generate alignment data",),
        summary="""Makes a small draft model for speculative decoding where the target has no small sibling with its
        vocabulary. A very small decoder, one to two percent of the target's size, is pre-trained on about ten
        billion tokens with the target's tokenizer. It goes on with code and is then fine-tuned on text that the
        target itself has generated. A report of acceptance rates per task and draft length says how well the two
        agree.""",
        when_not="""When a small model of the same family exists, or where heads on the target (`medusa`) are
        simpler. Any fine-tuning of the target asks for a new alignment.""",
        claim=Claim(
            "memory-bound speed-up of up to 3 times on code completion, up to 2 on other tasks",
            setting="""drafts of 50M for Phi-3-mini (3.8B) and 150M for Llama-3.1-8B-Instruct, trained in under 24
            hours on a node of 8 Gaudi 2; other tasks: summarisation, text completion, instructions; wall clock up
            to 2 times on an Intel Core Ultra""",
            source="abstract",
        ),
        composes="`specdec++`, `pearl`, `spectr`, quantised drafts.",
        conflicts="None known; `medusa` needs no draft.",
    ),
    MethodCard(
        "pela",
        stage="distil",
        kind="training",
        paper=Paper(
            "PELA: Learning Parameter-Efficient Models with Low-Rank Approximation",
            arxiv="2310.10700",
            venue="CVPR 2024",
        ),
        slots=("transform",),
        needs=("data like those of the pre-training",),
        summary="""Compresses a pre-trained transformer once, before any downstream work. Each weight matrix becomes
        the product of two thin ones from its singular value decomposition. A short training phase on the original
        task then repairs the loss, by matching the dense model's block features and by penalising large deviations
        from the original matrices. Downstream fine-tuning loads only the small model, unlike adapters, which still
        need the large one.""",
        when_not="""Without data like those of the pre-training, or for small models trained from scratch, whose
        spectra are flat.""",
        claim=Claim(
            "a third to two thirds of the parameters removed for about 0.6 points",
            setting="DeiT-B, DeiT-III-L, Swin-B and the vision-language model ALBEF, against the originals",
            source="abstract",
        ),
        composes="Adapters on the factors, `flatquant`, `well-read` distillation for a task.",
        conflicts="Width pruning that expects one matrix per projection; fused query-key-value kernels.",
    ),
    MethodCard(
        "compressor",
        stage="distil",
        kind="training",
        paper=Paper("Compressing Pre-trained Models of Code into 3 MB", arxiv="2208.07120", venue="ASE 2022"),
        slots=("search",),
        needs=("a teacher fine-tuned on the task, and unlabelled data of the task",),
        summary="""Shrinks a fine-tuned model of code to a few megabytes, so that it runs inside an editor. A
        genetic search looks only at closed-form sizes and operation counts and picks, among all shapes of the
        wanted size, one with the most computation. That costs seconds to minutes, since nothing is trained
        meanwhile. The student is then trained from scratch on the teacher's soft outputs over unlabelled data of
        the task.""",
        when_not="""For a student of general use: it imitates one task. The rule trades latency for capacity at
        equal bytes.""",
        claim=Claim(
            "3 MB student, 160 times smaller, keeps 96.15% of CodeBERT's task performance",
            setting="""vulnerability prediction; GraphCodeBERT 97.74%; inference 4.31 and 4.15 times faster on the
            paper's machine""",
            source="abstract",
        ),
        composes="Quantisation afterwards, `well-read` (pre-train the student first), `starbucks`.",
        conflicts="Feature distillation: widths and tokenizers differ.",
    ),
    MethodCard(
        "kv-prediction",
        stage="distil",
        paper=Paper("KV Prediction for Improved Time to First Token", arxiv="2410.08391", venue="arXiv, 2024"),
        slots=("prefill",),
        exact=False,
        needs=("a trained auxiliary model with its linear maps, for this base model and tokenizer",),
        summary="""A small auxiliary model reads the prompt, and learned linear maps turn its cache into an
        approximation of the large model's cache. The large model then processes only the last prompt token and
        generates as usual. The time to the first token falls to about that of the small model. Answers are better
        than the small model's own.""",
        when_not="""Where exact answers or log-probabilities of the prompt are needed, or for faster decoding. Every
        pair of models needs long training.""",
        claim=Claim(
            "relative accuracy 15 to 50% better on TriviaQA at equal time to first token",
            setting="OpenELM-1.1B as the base, time counted in FLOPs, over baselines; HumanEval up to 30% better",
            source="abstract",
        ),
        composes="A quantised auxiliary model, prefix caching of predicted entries.",
        conflicts="Base and auxiliary models with different tokenizers; log-probabilities of the prompt.",
    ),
    MethodCard(
        "distilled-decoding",
        stage="distil",
        kind="training",
        paper=Paper(
            "Distilled Decoding 1: One-step Sampling of Image Auto-regressive Models with Flow Matching",
            arxiv="2412.17153",
            venue="ICLR 2025",
        ),
        slots=("objective", "recipe"),
        needs=("an image model over a codebook as the teacher",),
        summary="""Turns an image generator that emits token after token into one that needs one or two steps. A
        flow-matching map makes sampling deterministic: each token becomes a function of the tokens before it and of
        a noise vector, with the teacher's distribution. A whole sequence of noise thus belongs to one sequence of
        tokens. A student that starts from the teacher learns to jump from the noise to the final sequence, without
        training images.""",
        when_not="Where quality must not drop, or for text, for which the geometry of the codebook does not hold.",
        claim=Claim(
            "LlamaGen from 256 steps to 1: 217.8 times faster, FID 4.11 to 11.35",
            setting="""ImageNet 256 x 256; VAR from 10 steps to 1: 6.3 times faster, FID 4.19 to 9.96; baselines
            that predict all tokens at once exceed an FID of 100""",
            source="abstract",
        ),
        composes="`controlar` (control at all positions at once), quantisation.",
        conflicts="Speculative decoding of images, which it replaces.",
    ),
    MethodCard(
        "well-read",
        stage="distil",
        kind="training",
        paper=Paper(
            "Well-Read Students Learn Better: On the Importance of Pre-training Compact Models",
            arxiv="1908.08962",
            venue="arXiv, 2019",
        ),
        slots=("objective", "recipe"),
        needs=("a large teacher fine-tuned on the task, and unlabelled text",),
        summary="""A small model is first pre-trained with the ordinary language-model loss, then distilled from a
        fine-tuned large teacher on unlabelled text of the task, and may be fine-tuned on labels at the end. The
        first two steps compound. Together they beat students that start at random, from the teacher's lower layers,
        or from distillation alone. It is the recipe that more complicated distillation must beat, and the origin of
        the BERT-Tiny to BERT-Medium checkpoints.""",
        when_not="For one compressed model that serves all tasks: the teacher is fine-tuned per task.",
        claim=Claim(
            "a student of 11M reaches the accuracy of its 340M teacher",
            setting="""Transformer-Mini taught by BERT-large over 8M unlabelled product reviews; without
            pre-training the student must be about ten times larger""",
            source="the paper, by way of a summary",
        ),
        composes="`compressor` (find the shape), `pela`, `learngene-sws` (start from it), quantisation afterwards.",
        conflicts="None known.",
    ),
)
