"""Planned: fitting a trained model to a task by small trained parts in or beside its layers."""

from headstart.methods.registry import Claim, MethodCard, Paper, planned

planned(
    MethodCard(
        "compacter",
        stage="adapt",
        kind="training",
        paper=Paper(
            "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers", arxiv="2106.04647", venue="NeurIPS 2021"
        ),
        slots=("transform",),
        summary="""A bottleneck adapter whose two matrices are not free. Each is a sum of Kronecker products between
        small matrices that all adapters of the network share and rank-one matrices of its own. Adapters sit after
        the attention and the feed-forward layers of a frozen model; the variant Compacter++ keeps only the second
        place. The trained part is less than a tenth of a percent of the model, at the accuracy of full fine-tuning.""",
        when_not="""For speed at inference: the adapters cannot be merged into the weights and add a little work to
        every layer.""",
        claim=Claim(
            "0.047% of the parameters trained, on par with full fine-tuning on GLUE",
            setting="T5-Base; better than full fine-tuning on SuperGLUE and with few samples",
            source="abstract",
        ),
        composes="Quantised frozen models, `essential-sparsity` masks on them.",
        conflicts="Serving that merges adapters into the weights.",
    ),
    MethodCard(
        "iaa",
        stage="adapt",
        kind="training",
        paper=Paper(
            "Scattered or Connected? An Optimized Parameter-efficient Tuning Approach for Information Retrieval",
            arxiv="2208.09847",
            venue="CIKM 2022",
        ),
        slots=("transform",),
        needs=("queries with relevant passages and good negatives",),
        summary="""Tunes a frozen encoder for search, for first-stage retrieval and for re-ranking, with less than
        one percent of trained parameters. Modules inside the blocks are separated by frozen layers, which makes
        their training slow and unstable. So further small modules beside the backbone link them into an unbroken
        trainable path. Training then converges faster and reaches or passes full fine-tuning.""",
        when_not="""Instead of good negatives, or where inference must cost nothing more: the side path cannot be
        merged. The paper's exact wiring could not be confirmed, so results here will be of our wiring.""",
        claim=Claim(
            "comparable to or better than full fine-tuning with under 1% of the parameters",
            setting="both retrieval stages, against known parameter-efficient methods; the abstract gives no figures",
            source="abstract",
        ),
        composes="Quantised frozen encoders, mixed kinds of adapters.",
        conflicts="Merging, and skipping of layers at inference unless the side modules are skipped too.",
    ),
    MethodCard(
        "difffit",
        stage="adapt",
        kind="training",
        paper=Paper(
            "DiffFit: Unlocking Transferability of Large Diffusion Models via Simple Parameter-Efficient Fine-Tuning",
            arxiv="2304.06648",
            venue="ICCV 2023",
        ),
        slots=("transform",),
        summary="""Bias tuning with one more knob: a scale vector, starting at one, on the outputs of chosen layers.
        Only biases, norms, the class embedding and these scales are trained. Afterwards scales and biases fold into
        the linear layers, so that the deployed network costs what the original did. It adapts a large diffusion
        transformer to many domains, or to a higher resolution, with tiny stored changes.""",
        when_not="""For language models without biases, unless biases are added, and for tasks far from the
        pre-training, where low-rank updates have more capacity.""",
        claim=Claim(
            "0.12% of the parameters trained, twice as fast as full fine-tuning",
            setting="""DiT-XL/2 on 8 downstream image sets; ImageNet 512 x 512 from the public 256 x 256 checkpoint:
            FID 3.02 after 25 epochs""",
            source="abstract",
        ),
        composes="Quantised frozen weights (scales kept apart), averaged weights, `essential-sparsity`.",
        conflicts="Tied layers, which need copies of scales and biases of their own.",
    ),
    MethodCard(
        "dkvb",
        stage="adapt",
        kind="training",
        paper=Paper("Discrete Key-Value Bottleneck", arxiv="2207.11240", venue="ICML 2023"),
        slots=("transform", "recipe"),
        needs=("a good pre-trained encoder, and unlabelled data to place the keys",),
        summary="""Puts a table between a frozen encoder and the output. The feature is split into many small heads;
        each snaps to the nearest key of its codebook and fetches the value stored there, and the values make the
        prediction. Keys are placed once, without labels, and frozen, so that learning changes only the fetched
        values. New classes therefore hardly disturb old ones, without replay and without known task borders.""",
        when_not="""When the encoder's features do not separate the classes, or when accuracy on well mixed data
        counts more than forgetting. Momentum and Adam destroy the locality of its updates.""",
        claim=Claim(
            "forgetting strongly reduced, where linear and MLP probes collapse to the last split",
            setting="""class-incremental CIFAR-10 without task borders, several frozen pre-trained encoders; tables
            not at hand""",
            source="the paper",
        ),
        composes="Any frozen encoder, also a quantised one; `slca` is its rival.",
        conflicts="Any further tuning of the encoder, whose features then drift off the keys.",
    ),
    MethodCard(
        "dsee",
        stage="adapt",
        kind="training",
        paper=Paper(
            "DSEE: Dually Sparsity-embedded Efficient Tuning of Pre-trained Language Models",
            arxiv="2111.00160",
            venue="ACL 2023",
        ),
        slots=("transform",),
        summary="""Puts sparsity on both sides of fine-tuning. The update is low-rank plus a handful of single
        entries, whose places are chosen once by decomposing the pre-trained matrix. In the middle of fine-tuning
        the model itself is pruned, by single weights or by whole attention heads, with masks drawn from the update.
        The small update is then trained on, to recover.""",
        when_not="""For speed with unstructured masks on GPUs, where the saving stays theoretical; pruned heads save
        time. Merging an unmasked update makes the weight dense again.""",
        claim=Claim(
            "about 25% of inference FLOPs saved with 0.5% trainable parameters",
            setting="BERT at comparable quality; an earlier abstract said about 35% with under 1%",
            source="abstract",
        ),
        composes="`perp` (merging under a mask), `essential-sparsity` masks, quantised frozen weights.",
        conflicts="Any later merge that fills the zeros.",
    ),
)
