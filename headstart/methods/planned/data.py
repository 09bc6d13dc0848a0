"""Planned: what a model reads, and in what order."""

from headstart.methods.registry import Claim, MethodCard, Paper, planned

planned(
    MethodCard(
        "one-epoch",
        stage="data",
        kind="training",
        paper=Paper("One Epoch Is All You Need", arxiv="1906.06669", venue="arXiv, 2019"),
        slots=("data_stage",),
        summary="""Plans a pre-training run under a fixed compute budget by two rules. The first: when more text can
        be had, read a larger set once instead of a smaller one many times, since training loss then equals test
        loss in expectation and regularisers such as dropout only cost time. The second: choose model size and
        number of steps together, so that the tokens processed per parameter stay near a constant. The data pipeline
        guarantees that no document comes twice, and the planner says how often a run would repeat its data.""",
        when_not="""When text is scarce: then `token-crisis` applies. The paper's constant of about 5 tokens per
        parameter was found on small models and is not the 20 of later studies: measure it on your own corpus.""",
        claim=Claim(
            "10 epochs replaced by 1: 1.9 to 3.3 times less time to equal loss",
            setting="""Transformer language models at small scale, 10 epochs over a set against 1 epoch over a ten
            times larger one; adjusting size and steps brings 1 to 2.7 times, both together 3.3 to 5.1 times""",
            source="abstract",
        ),
        composes="`meco`, `ul2` and `mosaicbert` train on a stream that is read once.",
        conflicts="""By design with `token-crisis` and `stability-gap`, which treat repeated data: a run is in one
        regime or the other.""",
    ),
    MethodCard(
        "wrap",
        stage="data",
        kind="training",
        paper=Paper(
            "Rephrasing the Web: A Recipe for Compute and Data-Efficient Language Modeling",
            arxiv="2401.16380",
            venue="ACL 2024",
        ),
        slots=("data_stage",),
        needs=("an instruction-tuned model that rewrites",),
        summary="""An instruction-tuned model rewrites web documents, cut into pieces of about 300 tokens, in four
        styles: very simple, encyclopaedic, terse, and question with answer. Rules then remove refusals,
        announcements and failed rewrites, and every rewrite keeps the id of its source. Pre-training draws real and
        rewritten text one to one. The mixture is closer to the way a model will be asked and carries less noise, so
        that a given quality takes less text and less compute.""",
        when_not="""When the source text is already clean, or when nobody shares the cost of generation, which is
        large although paid once. It adds no new facts, and rewritten text alone hurts on messy domains.""",
        claim=Claim(
            "pre-training about 3 times faster at equal quality",
            setting="""C4, rewritten by Mistral-7B-Instruct; decoder of 1.3B, average of 8 general zero-shot tasks:
            52.3 with rewrites beside 85B real tokens, 50.2 with those 85B alone, 50.3 with all 170B""",
            source="abstract, and the paper's zero-shot table",
        ),
        composes="`preselect` before it, `meco` with the style as a tag, `token-crisis`: a rewrite is a softer repeat.",
        conflicts="None known.",
    ),
    MethodCard(
        "token-crisis",
        stage="data",
        kind="training",
        paper=Paper(
            "To Repeat or Not To Repeat: Insights from Scaling LLM under Token-Crisis",
            arxiv="2305.13230",
            venue="NeurIPS 2023",
        ),
        slots=("data_stage",),
        summary="""A study of training for several epochs on the same text, turned into a recipe. Repetition
        overfits, and how much depends on the number of unique tokens, the number of trainable parameters and the
        objective, hardly on the quality of the text. Of the usual regularisers only dropout clearly helps, also
        when it is switched on late. A mixture of experts with about the same number of trainable parameters
        overfits like the dense model, so it serves as a cheap stand-in to tune the dropout rate.""",
        when_not="In a run that reads every document once: dropout then only costs time.",
        claim=Claim(
            "dropout wins back 1.3 of the 2.9 points of accuracy that 256 epochs cost",
            setting="""T5-Base on C4, accuracy on unseen text: 64.6 with 2^35 tokens read once, 61.7 with 2^27
            tokens read 2^8 times, 63.0 with dropout added""",
            source="the paper's tables, by way of a summary",
        ),
        composes="`stability-gap` (few epochs on a chosen subset), `wrap`.",
        conflicts="`ul2`, whose mixture memorises faster under repetition; the opposite advice to `one-epoch`.",
    ),
    MethodCard(
        "augment-coresets",
        stage="data",
        kind="training",
        paper=Paper(
            "Data-Efficient Augmentation for Training Neural Networks", arxiv="2210.08363", venue="NeurIPS 2022"
        ),
        slots=("scorer",),
        summary="""Augments only a small part of the training set, chosen so that its augmented copies act on the
        model almost like augmenting everything. The choice is made per class by a greedy facility-location cover in
        the space of the per-sample loss gradients. It is refreshed every few epochs at the cost of one forward pass
        over the data. The other samples are used as they are.""",
        when_not="""When augmentation is cheap, such as flips and crops on the accelerator, when classes hold only a
        few points, or when samples stream by without stable ids.""",
        claim=Claim(
            "6.3 times faster on CIFAR-10, 2.2 times on SVHN",
            setting="""image classifiers; on TinyImageNet and ImageNet up to 3.3 times faster; the abstract names
            neither hardware nor the share augmented""",
            source="abstract",
        ),
        composes="`augmented-pet`: choose which examples to augment.",
        conflicts="Mixup and CutMix, which change labels and need partners, and streams without sample ids.",
    ),
    MethodCard(
        "got-d",
        stage="data",
        kind="training",
        paper=Paper(
            "Get more for less: Principled Data Selection for Warming Up Fine-Tuning in LLMs",
            arxiv="2405.02774",
            venue="ICLR 2024",
        ),
        slots=("scorer",),
        needs=("an encoder for both sets, best one that was fine-tuned on the target task",),
        summary="""Picks unlabelled text for a short warm-up of a model before it is fine-tuned on a small labelled
        set. It asks which candidates, given more weight in the pre-training distribution, would bring that
        distribution closest to the target in optimal-transport distance. The answer is the gradient of the distance
        with respect to the mass of a sample, read off the dual solution of one transport problem over embeddings.
        The candidates are sorted by it, and the first ten thousand to hundred and fifty thousand are used.""",
        when_not="""For large budgets as in continued pre-training, where the linear approximation breaks, or for
        targets far from the pre-training data. The ranking knows no diversity, so remove duplicates first.""",
        claim=Claim(
            "expected maximum toxicity of GPT-2 from 0.62 to 0.41 with 20K selected samples",
            setting="""GPT-2 124M warmed up on OpenWebText samples, toxic prompts; equally many samples by random
            choice give 0.57, by DSIR 0.60, by a toxicity score 0.50""",
            source="the paper's detoxification table",
        ),
        composes="`preselect`, which has another goal: it looks at no target.",
        conflicts="None known.",
    ),
    MethodCard(
        "preselect",
        stage="data",
        kind="training",
        paper=Paper(
            "Predictive Data Selection: The Data That Predicts Is the Data That Teaches",
            arxiv="2503.00808",
            venue="ICML 2025",
        ),
        slots=("scorer",),
        needs=("several models whose order on benchmarks is known, to label a sample",),
        summary="""Calls a document predictive if its loss under several models ranks those models in the order of
        their benchmark scores, and finds that predictive documents are also good training text. The agreement is
        computed once, on a sample, with a ladder of existing models. A small n-gram classifier then learns to
        recognise such documents. It scores the whole pool cheaply, and the best tenth, counted in characters, is
        kept.""",
        when_not="""Without a handful of models of known order for the abilities of interest. Checkpoints of one run
        make a bad ladder, since the loss of every document falls along it.""",
        claim=Claim(
            "30B selected tokens beat 300B random ones: 10 times less compute",
            setting="""models of 1B, pool DCLM-RefinedWeb, ladder of six Llama-1 and Llama-2 models, average over
            the paper's benchmarks""",
            source="abstract",
        ),
        composes="`wrap` (filter first, then rewrite), `meco`, `stability-gap`, `got-d`.",
        conflicts="None known.",
    ),
)
