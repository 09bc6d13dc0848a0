"""Planned: images, video, tables and time series."""

from headstart.methods.registry import Claim, MethodCard, Paper, planned

planned(
    MethodCard(
        "ttm",
        stage="beyond-text",
        kind="training",
        paper=Paper(
            "Tiny Time Mixers (TTMs): Fast Pre-trained Models for Enhanced Zero/Few-Shot Forecasting of Multivariate "
            "Time Series",
            arxiv="2401.03955",
            venue="NeurIPS 2024",
        ),
        slots=("data_stage", "recipe"),
        needs=("many series to pre-train on",),
        summary="""A forecaster of time series with about a million parameters and without attention, pre-trained
        once on many public series. It is used zero-shot, or after a short tuning of its head. One forward pass
        gives the whole horizon. Patches of several sizes, down-sampled copies of fine series and a token for the
        resolution let so small a model learn series of very different rates.""",
        when_not="For probabilistic forecasts, irregular sampling, context lengths that vary, or other tasks.",
        claim=Claim(
            "12 to 38% more accurate zero- and few-shot, inference 54 times faster",
            setting="""against forecasters made from language models (GPT4TS); 106 times fewer parameters in all,
            fine-tuning 65 times faster; the NeurIPS version says 4 to 40% more accurate""",
            source="an early version of the abstract",
        ),
        composes="Quantisation, distillation.",
        conflicts="Batches of varying length: the number of patches is part of the weights.",
    ),
    MethodCard(
        "kind",
        stage="beyond-text",
        kind="training",
        paper=Paper(
            "KIND: Knowledge Integration and Diversion in Diffusion Models",
            arxiv="2408.07337",
            venue="ICML 2025, as 'KIND: Knowledge Integration and Diversion for Training Decomposable Models'",
        ),
        slots=("transform",),
        summary="""Pre-trains an image generator so that it can be taken apart afterwards. Every weight matrix is a
        sum of rank-one parts; some are always on and collect what all classes share, the others are switched on for
        certain classes only. After the pre-training one ships the shared parts with those of the wanted classes.
        Under a large change of domain the shared parts get fresh parts beside them, trained like low-rank adapters.""",
        when_not="On an existing checkpoint: decomposing it afterwards does not give the separation.",
        claim=Claim(
            "FID lower by more than 6.54, at least 35.4 GFLOPs saved",
            setting="""DiT-L/2 with 45.4M trainable parameters, against parameter-efficient tuning and other
            learngene methods; sFID lower by more than 1.07""",
            source="abstract",
        ),
        composes="Factors as in `pela` and `dsee`, `learngene-sws` for the depth.",
        conflicts="Fused query-key-value kernels, tensor parallelism across the rank-one parts.",
    ),
    MethodCard(
        "controlar",
        stage="beyond-text",
        kind="training",
        paper=Paper(
            "ControlAR: Controllable Image Generation with Autoregressive Models", arxiv="2410.02705", venue="ICLR 2025"
        ),
        slots=("transform",),
        needs=("a pre-trained image generator over tokens", "pairs of control and image"),
        summary="""Adds spatial control, such as edges, depth or segmentation, to an image generator that works
        token by token. The control feature of the next position is added to the hidden state that predicts it,
        instead of prefilling control tokens. Sequence length and cache do not grow. Since the control defines the
        canvas, any resolution can be generated.""",
        when_not="Without pairs of control and image, or for generators that do not work token by token.",
        claim=Claim(
            "better control and quality than ControlNet++",
            setting="""edges, depth and segmentation masks as controls; scores were quoted from memory only and are
            left out""",
            source="abstract",
        ),
        composes="`distilled-decoding` (all positions at once), quantisation, adapters.",
        conflicts="Dropping class and control independently, which breaks classifier-free guidance.",
    ),
    MethodCard(
        "tabpfn",
        stage="beyond-text",
        kind="training",
        paper=Paper(
            "TabPFN: A Transformer That Solves Small Tabular Classification Problems in a Second",
            arxiv="2207.01848",
            venue="ICLR 2023",
        ),
        slots=("data_stage", "recipe"),
        summary="""A transformer trained once on synthetic classification tasks, drawn from a prior over small
        causal graphs and random networks. In use, labelled and unlabelled rows enter as one sequence. The class
        probabilities of all unlabelled rows come out of one forward pass, without a gradient step or tuning.
        Training rows attend to each other, and every query row only to them.""",
        when_not="""Beyond about 1,000 training rows, 100 numeric features or 10 classes, with many categorical or
        missing values, or for regression.""",
        claim=Claim(
            "on par with AutoML systems up to 230 times faster, 5,700 times with a GPU",
            setting="""18 numeric OpenML-CC18 sets with at most 1,000 training rows, 100 features and 10 classes;
            the baselines had an hour per set""",
            source="abstract",
        ),
        composes="A cached encoding of the training rows, quantisation, averaging with other predictors.",
        conflicts="Caches for causal language models; packing several tasks without masks between them.",
    ),
    MethodCard(
        "stdo",
        stage="beyond-text",
        kind="training",
        paper=Paper(
            "Towards High-Quality and Efficient Video Super-Resolution via Spatial-Temporal Data Overfitting",
            arxiv="2303.08331",
            venue="CVPR 2023 (highlight)",
        ),
        slots=("data_stage", "recipe"),
        needs=("the video in full resolution, in advance", "a generic super-resolution model that scores patches"),
        summary="""Sends a low-resolution video with one or a few tiny super-resolution networks that were
        overfitted to exactly this video. Frames are cut into patches, and a generic model scores how hard each
        patch is. Patches of similar difficulty from the whole video form a chunk with a network of its own, and two
        to four chunks suffice. A joint variant trains one network on a sample weighted by difficulty.""",
        when_not="For live content, or where the network must generalise to other videos.",
        claim=Claim(
            "28 frames/s on a phone at 41.6 dB: 14 times faster and 2.29 dB better",
            setting="real-time video super-resolution on a mobile phone, against the state of the art in 2023",
            source="abstract",
        ),
        composes="Quantisation, pruning, sending a network as a difference to another.",
        conflicts="Tilings that adapt to the scene, unless the index of the tiles is sent anew.",
    ),
    MethodCard(
        "predformer",
        stage="beyond-text",
        kind="training",
        paper=Paper(
            "PredFormer: Transformers Are Effective Spatial-Temporal Predictive Learners",
            arxiv="2410.04733",
            venue="arXiv, 2024",
        ),
        slots=("recipe",),
        summary="""Predicts the next frames of a video or a grid with a plain transformer, without recurrence or
        convolution. Patches of all frames become tokens, and gated blocks mix them along space, along time, or
        both. The paper compares nine arrangements; those that interleave space and time do best and cost far less
        than attention over everything. A linear head paints all future frames at once.""",
        when_not="""For long rollouts that drift, varying resolution, or samples of several futures: it predicts the
        mean.""",
        claim=Claim(
            "mean squared error on Moving MNIST 51.3% below SimVP's",
            setting="""10 frames from 10, 64 x 64 pixels; TaxiBJ 33.1% lower at 2364 instead of 533 frames/s,
            WeatherBench 11.1% lower at 404 instead of 196""",
            source="abstract",
        ),
        composes="Compilation, bf16, adapters, pruning.",
        conflicts="Causal masks and caches: attention is bidirectional.",
    ),
)
