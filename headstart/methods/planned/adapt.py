"""Planned: fitting a trained model to a task or a setting, by data, objectives and recipes."""

from headstart.methods.registry import Claim, MethodCard, Paper, planned

planned(
    MethodCard(
        "fim-curriculum",
        stage="adapt",
        kind="training",
        paper=Paper(
            "Improving FIM Code Completions via Context & Curriculum Based Learning",
            arxiv="2412.16589",
            venue="WSDM 2025",
        ),
        slots=("data_stage",),
        needs=("an infilling model of code, and repositories to fine-tune on",),
        summary="""Fine-tunes infilling models of code on the spots where completions fail. Holes are cut along the
        syntax tree, at calls, definitions and the like, and ordered by difficulty. The definitions of the symbols
        that a hole uses are put into the prompt during training, so that the model learns to use retrieved context.
        Holes at random places stay in the mixture.""",
        when_not="For pre-training, or without code of one's own.",
        claim=Claim(
            "better on three benchmarks, small models most; no added latency",
            setting="""fine-tuned StarCoder and DeepSeek-Coder models on SantaCoder infilling, CrossCodeEval and
            multi-line infilling from SWE-bench; an online A/B test; figures in circulation are second-hand and left
            out""",
            source="abstract and public summaries",
        ),
        composes="`hlp`, `ul2`, prefix caching of shared snippets, speculation by prompt look-up.",
        conflicts="None known.",
    ),
    MethodCard(
        "self-distillation",
        stage="adapt",
        kind="training",
        paper=Paper(
            "Self-Distillation for Further Pre-training of Transformers", arxiv="2210.02871", venue="ICLR 2023"
        ),
        slots=("objective", "recipe"),
        needs=("unlabelled data of the target, some thousands to tens of thousands of samples",),
        summary="""Runs the further pre-training on a small unlabelled target set twice. The first run makes a
        teacher. A fresh copy of the initial model then trains on the same data with the same loss, plus a term that
        keeps its representation of the whole input close to the teacher's. This student, regularised by its
        teacher, is fine-tuned on the labels.""",
        when_not="""With abundant target data, or where two to four times the cost of plain further pre-training is
        too much.""",
        claim=Claim(
            "better than further pre-training alone on most image sets, slightly better on text",
            setting="""ViT-MAE base on six image classification sets, and text classification; against fine-tuning,
            further pre-training and regularised fine-tuning; the tables were not at hand""",
            source="the paper, by way of a summary",
        ),
        composes="`stability-gap` and `rewarming` (same phase).",
        conflicts="Regularisation towards the initial weights, which competes with it.",
    ),
    MethodCard(
        "hlp",
        stage="adapt",
        kind="training",
        paper=Paper(
            "Horizon-Length Prediction: Advancing Fill-in-the-Middle Capabilities for Code Generation with Lookahead "
            "Planning",
            arxiv="2410.03103",
            venue="EMNLP 2025, as 'Planning-Aware Code Infilling via Horizon-Length Prediction'",
        ),
        slots=("objective",),
        summary="""Teaches an infilling model how far it is from the end of the gap. At every token of the middle
        one extra linear unit predicts the fraction that is still to come, beside the ordinary next-token loss.
        Without it completions run on or stop wrong, which benchmarks hide by truncation rules. The unit is dropped
        afterwards, so that inference costs nothing more.""",
        when_not="For left-to-right generation only, where the end is never in doubt.",
        claim=Claim(
            "up to 24% relative improvement in repository-level infilling",
            setting="""code models after further pre-training, against the same run without it, exact match without
            post-processing; file-level infilling (SAFIM) up to 5%; reviewers missed confidence intervals""",
            source="abstract and public summaries",
        ),
        composes="`fim-curriculum`, `ul2`, drafting heads such as `medusa`.",
        conflicts="None known.",
    ),
    MethodCard(
        "stability-gap",
        stage="adapt",
        kind="training",
        paper=Paper(
            "Efficient Continual Pre-training by Mitigating the Stability Gap", arxiv="2406.14833", venue="ACL 2025"
        ),
        slots=("recipe",),
        needs=("the mixture of the original pre-training, and a reference corpus of the domain",),
        summary="""When a language model is trained on into a new domain, its task accuracy first drops and then
        recovers, although the perplexity of the domain falls from the start. Three measures soften the drop with
        less compute. Train several epochs on a subset of the right size, take the part of the highest quality, and
        mix it with data in the proportions of the original pre-training. Monitors show the depth of the gap and the
        time to recovery.""",
        when_not="""For pre-training from scratch, and with less effect when the original mixture is unknown. A
        subset that is too small, or more than four to five epochs, overfits.""",
        claim=Claim(
            "medical average 36.2 to 40.7 with 40% of the training budget",
            setting="""OpenLlama-3B, zero-shot average of MMLU-Med, PubMedQA, MedMCQA and MedQA, 20B tokens; one
            epoch over all 50B tokens gives 37.4""",
            source="abstract and the paper's main table",
        ),
        composes="`preselect` (the best subset), `self-distillation`.",
        conflicts="`rewarming`: its warm-up spike looks like the gap, so study them apart.",
    ),
    MethodCard(
        "pre-gated-moe",
        stage="adapt",
        paper=Paper(
            "Pre-gated MoE: An Algorithm-System Co-Design for Fast and Scalable Mixture-of-Expert Inference",
            arxiv="2308.12066",
            venue="ISCA 2024",
        ),
        slots=("placement",),
        exact=False,
        needs=(
            "a mixture of experts whose routers are fine-tuned for it",
            "a GPU, and pinned CPU memory for the experts",
        ),
        summary="""Serves mixtures of experts whose experts lie in CPU memory. The choice of experts moves one block
        ahead: the router of a block chooses the experts of the next. Copying them to the GPU then overlaps the
        block's own computation. The GPU holds the other weights and the active experts of two blocks.""",
        when_not="""For large batches, which activate nearly all experts, and in prefill for the same reason; nor
        without fine-tuning the routers.""",
        claim=Claim(
            "81% of a GPU-resident model's throughput at 23% of its peak memory",
            setting="""averages over Switch-Base and Switch-Large variants, A100 80GB with PCIe 4, mostly batch 1;
            blocks 1.7 times faster than with experts fetched on demand""",
            source="the paper",
        ),
        composes="Quantised experts (smaller copies), a cache of hot experts.",
        conflicts="Expert-choice routing, and capacity-based dropping tuned on ordinary routers.",
    ),
    MethodCard(
        "dynamic-tokenization",
        stage="adapt",
        paper=Paper(
            "Retrofitting (Large) Language Models with Dynamic Tokenization", arxiv="2411.18553", venue="ACL 2025"
        ),
        slots=("tokenization",),
        exact=False,
        needs=("a hypernetwork trained for the model, which predicts embeddings of new tokens",),
        summary="""Makes sequences shorter for a trained model. Frequent neighbouring subwords are merged batch by
        batch, and a hypernetwork predicts embeddings for the new, longer tokens. Prefill gets cheaper with little
        loss. For generation a vocabulary of a million tokens is searched through an approximate nearest-neighbour
        index.""",
        when_not="""Where single tokens must be aligned, unless word ids are carried along. Tokens that depend on
        the batch break prefix caching, unless the merges are fixed.""",
        claim=Claim(
            "sequences over 20% shorter on average, for less than 2% of performance",
            setting="""XLM-R on XNLI in 14 languages, merged to whole words; the figures for Mistral-7B differ
            between versions of the abstract and are left out""",
            source="abstract",
        ),
        composes="Any method of attention or cache, since it shortens the input; low-rank adapters.",
        conflicts="Constrained decoding by token id, cached keys of other batches, drafts with the old vocabulary.",
    ),
    MethodCard(
        "augmented-pet",
        stage="adapt",
        kind="training",
        paper=Paper(
            "Effectiveness of Data Augmentation for Parameter Efficient Tuning with Limited Data",
            arxiv="2303.02577",
            venue="RepL4NLP workshop at ACL 2023",
        ),
        slots=("data_stage",),
        summary="""Tests whether the usual text augmentations help when only a prompt or an adapter is trained and
        labels are few. Word edits, back-translation and mixup are crossed with tuning methods and sizes of data.
        They can help, but the benefit depends on method, task and model, and larger models on harder tasks may
        lose. For prompt tuning a contrastive loss separates the classes better and improves accuracy.""",
        when_not="""With many labels, or for extraction and sequence labelling, where the spans move. Compare at
        equal steps, or augmentation is only longer training.""",
        claim=Claim(
            "augmentation can raise low-data tuning, and can lower larger models on harder tasks",
            setting="P-tuning v2 and low-rank adapters on frozen models, few labels; the abstract gives no figures",
            source="abstract",
        ),
        composes="`augment-coresets` (which examples to augment), adapters, `iaa`.",
        conflicts="Extractive and sequence-labelling tasks.",
    ),
    MethodCard(
        "starbucks",
        stage="adapt",
        kind="training",
        paper=Paper(
            "Starbucks: Improved Training for 2D Matryoshka Embeddings", arxiv="2410.13230", venue="arXiv, 2024"
        ),
        slots=("objective",),
        needs=("pairs of query and passage, or of similar texts",),
        summary="""Trains one encoder that can be cut afterwards, in depth and in vector width, each cut about as
        good as a model trained for that size alone. A short list of pairs of depth and width is fixed, and the loss
        is summed over all of them at every step. The smaller pairs also learn from the full one. An optional
        masked-autoencoder pre-training over the same pairs gives the small cuts a better start.""",
        when_not="For one deployment size, or for generating text.",
        claim=Claim(
            "smallest cut: MS MARCO MRR@10 of .2282, trained separately .2092",
            setting="""BERT-Base cut to 2 layers and 32 dimensions; the earlier 2D Matryoshka training gives .1589;
            full size .3403, trained separately .3341""",
            source="official repository, tables",
        ),
        composes="Quantised indexes, adapters, early exit.",
        conflicts="Methods that reorder or drop middle layers.",
    ),
    MethodCard(
        "slca",
        stage="adapt",
        kind="training",
        paper=Paper(
            "SLCA: Slow Learner with Classifier Alignment for Continual Learning on a Pre-trained Model",
            arxiv="2303.05118",
            venue="ICCV 2023",
        ),
        slots=("optimizer",),
        needs=("a good pre-trained encoder",),
        summary="""Learns a stream of classification tasks on a pre-trained encoder with little forgetting. The
        backbone learns a hundred times slower than the head, which removes most of the forgetting. What remains is
        a mismatch between rows of the classifier that were learned at different times. It is repaired after each
        task, by sampling features from stored statistics of each class and retraining the head on all classes seen.""",
        when_not="""For generative continual pre-training, or without real pre-training. The stored covariances grow
        with classes times width squared.""",
        claim=Claim(
            "49.76 points above sequential fine-tuning on Split CIFAR-100",
            setting="""ViT-B/16 pre-trained with labels on ImageNet-21K, 10 tasks, accuracy after the last;
            ImageNet-R 50.05, CUB-200 44.69, Cars-196 40.16 points""",
            source="abstract; the setting from the paper",
        ),
        composes="Low-rank adapters as the slow part, quantised feature extractors; `dkvb` is its rival.",
        conflicts="Backbones with batch norm, unless its statistics are frozen.",
    ),
    MethodCard(
        "sfprompt",
        stage="adapt",
        kind="training",
        paper=Paper(
            "SFPrompt: Communication-Efficient Split Federated Fine-Tuning for Large Pre-Trained Models over "
            "Resource-Limited Devices",
            arxiv="2407.17533",
            venue="arXiv, 2024",
        ),
        slots=("split",),
        summary="""Fine-tunes a large model over many weak devices without moving raw data or the full model. The
        first and last layers live on the device, the heavy middle stays at the server, and only a few prompt tokens
        and the last part are trained. A local phase trains them without the server by skipping the middle. Each
        device also prunes its data to the most informative samples, which cuts traffic further.""",
        when_not="""Where data may be pooled, or where activations are sensitive themselves: the server sees them.
        With a small model the traffic can exceed that of plain federated learning.""",
        claim=Claim(
            "0.46% of the local computation and 53% less communication",
            setting="""against federated full fine-tuning at comparable accuracy; vision transformers; number of
            devices and data sets of these figures not known here""",
            source="abstract",
        ),
        composes="Quantised middles, compressed activations, low-rank adapters in the last part.",
        conflicts="Claims of secure aggregation, since the server sees activations.",
    ),
)
