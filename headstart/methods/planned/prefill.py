"""Planned: reading the prompt."""

from headstart.methods.registry import Claim, MethodCard, Paper, planned

planned(
    MethodCard(
        "mllm-npu",
        stage="prefill",
        paper=Paper(
            "Empowering 1000 tokens/second on-device LLM prefilling with mllm-NPU",
            arxiv="2407.05858",
            venue="ASPLOS 2025, as 'Fast On-device LLM Inference with NPUs'",
        ),
        slots=("prefill", "linear"),
        exact=False,
        needs=("a calibration of activation scales",),
        summary="""Reshapes the prefill of a language model to fit phone NPUs, which are fast only for fixed shapes
        and 8-bit integers. Prompts become chunks of one size that share graphs built beforehand. Activations are
        quantised per tensor, and the rare outliers are computed apart, on the CPU. Parts of different chunks run
        out of order, so that work on CPU and GPU hides under work on the NPU.""",
        when_not="""For decoding, which stays on the CPU in float. The published ratios come from phones that are
        weak in float and do not carry over to servers.""",
        claim=Claim(
            "prefill 22.4 times faster with 30.7 times less energy, on average",
            setting="""phones; over 1,000 tokens/s for Qwen1.5-1.8B; on a Redmi K70 Pro at 1,024 tokens 18.2 to 38.4
            times faster than llama.cpp on the CPU and 7.3 times than MNN""",
            source="abstract and the paper's tables",
        ),
        composes="""Chunked schedulers such as `sarathi`, prefix caching by chunk, rotation (which removes the
        outliers).""",
        conflicts="Per-token dynamic quantisation and per-group weight scales.",
    ),
    MethodCard(
        "prepacking",
        stage="prefill",
        paper=Paper(
            "Prepacking: A Simple Method for Fast Prefilling and Increased Throughput in Large Language Models",
            arxiv="2404.09529",
            venue="arXiv, 2024",
        ),
        slots=("scheduler",),
        summary="""Packs several short prompts into one row of a padded batch, by bin packing. A block-diagonal mask
        and positions that restart keep the prompts apart. One prefill serves all of them; then the cache is cut
        apart again and generation goes on as usual. The result is exact, and time and memory shrink with the
        padding avoided.""",
        when_not="In an engine with ragged batches, which has the gain already, or for prompts of equal length.",
        claim=Claim(
            "prefill 5.2 times faster than padded batches: 0.441 s instead of 2.299 s",
            setting="""Llama 1.3B, MMLU prompts, batch 64, one A6000 48 GB; batches ordered by length take 0.658 s;
            peak memory 4.6 GB instead of 34.6 GB""",
            source="official README",
        ),
        composes="Paged caches, quantisation.",
        conflicts="Methods with statistics per row, such as token pruning by total attention.",
    ),
    MethodCard(
        "minference",
        stage="prefill",
        paper=Paper(
            "MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse Attention",
            arxiv="2407.02490",
            venue="NeurIPS 2024 (spotlight)",
        ),
        slots=("selector.prefill",),
        exact=False,
        chunking="per_chunk",
        needs=("a file of patterns per head, found by an offline search for the checkpoint",),
        summary="""Attention over a long prompt is sparse, and the shape of the sparsity is stable per head while
        its exact places change with the prompt. An offline search gives each head one of three patterns: first and
        recent tokens, vertical and slash lines, or blocks. At run time a small estimate finds the places for this
        prompt. A sparse kernel then computes only those, which shortens the time to the first token.""",
        when_not="""For prompts below some tens of thousands of tokens, where finding the places costs more than it
        saves; for decode, which stays dense; and when later turns ask something else, since the estimate is made
        from the last queries of the prompt.""",
        claim=Claim(
            "prefill of 1M tokens 9.9 times faster: 179 s instead of 1766 s",
            setting="""Llama-3-8B-Instruct, bf16, one A100 80GB, against FlashAttention-2; 1.8 times faster at 100K,
            and 2.8 times slower at 10K""",
            source="the authors' latency table",
        ),
        composes="""Chunked prefill if every chunk estimates anew (`qwen2.5-1m`), prefix caching, `lserve`'s
        retrieval heads.""",
        conflicts="`hip` and `zipvl` on the same layers.",
    ),
    MethodCard(
        "hip",
        stage="prefill",
        paper=Paper(
            "HiP Attention: Sparse Sub-Quadratic Attention with Hierarchical Attention Pruning",
            arxiv="2406.09827",
            venue="ICLR 2025, as 'A Training-free Sub-quadratic Cost Transformer Model Serving Framework with "
            "Hierarchically Pruned Attention'",
        ),
        slots=("selector.prefill", "selector.decode"),
        exact=False,
        chunking="per_chunk",
        summary="""Finds for each block of queries approximately the keys with the highest scores, by a search that
        halves candidate regions and looks at one representative key of each. Block-sparse attention then runs on
        the winners, with the first tokens and a window of recent ones. It needs no training, and its cost grows as
        T log T with context length T. While decoding, a selection is reused for several steps.""",
        when_not="""For contexts not well beyond the number of keys kept (512 by default in the code), and in layers
        with diffuse attention: the first few stay dense.""",
        claim=Claim(
            "decode up to 6.83 times faster end to end at 128K",
            setting="models of Llama-3.1-8B's class; hardware and batch not known here",
            source="a summary of the ICLR version",
        ),
        composes="Paged caches and offloading, since the search touches few pages.",
        conflicts="`lserve` and `minference` on the same layers; pages quantised as a whole, unless keys are restored.",
    ),
    MethodCard(
        "qwen2.5-1m",
        stage="prefill",
        paper=Paper("Qwen2.5-1M Technical Report", arxiv="2501.15383", venue="arXiv, 2025"),
        slots=("attention.prefill", "attention.decode", "selector.prefill"),
        exact=False,
        chunking="per_chunk",
        needs=("budgets per head, refined on a calibration at full length",),
        min_context=32768,
        summary="""A recipe that takes a 4K model to 256K by staged training and to one million tokens at inference
        without training. Dual chunk attention remaps relative positions so that none exceeds the trained window,
        and a softmax temperature grows with length. Sparse prefill in the manner of MInference is made to work with
        chunked prefill. Sparsity refinement raises the budget of a head until its attention recall at one million
        tokens is good.""",
        when_not="""For prompts below the chunk of the positions and the sparse threshold of 32,768 tokens: nothing
        changes there.""",
        claim=Claim(
            "prefill of 1M tokens 3 to 7 times faster",
            setting="Qwen2.5-1M models against full attention; figures per model and GPU not known here",
            source="abstract",
        ),
        composes="`minference` patterns, paged caches, tensor parallelism.",
        conflicts="ALiBi and sliding windows.",
    ),
    MethodCard(
        "zipvl",
        stage="prefill",
        paper=Paper(
            "ZipVL: Efficient Large Vision-Language Models with Dynamic Token Sparsification and KV Cache Compression",
            arxiv="2410.08584",
            venue="arXiv, 2024",
        ),
        slots=("selector.prefill", "retention", "kv_layout"),
        exact=False,
        chunking="whole",
        summary="""Lets each layer decide how many tokens of a vision-language prompt are important: the fewest
        whose attention scores cover a set share of the total. Prefill attention runs only among these tokens. The
        cache keeps them in high precision and the rest in low precision, or in the second version drops the rest.
        One threshold replaces fixed ratios, for images, videos or plain long text.""",
        when_not="For short or dense prompts, of which nearly everything is kept.",
        claim=Claim(
            "prefill 2.6 times faster, GPU memory down 50%, accuracy down 0.2%",
            setting="""LongVA-7B on Video-MME, first version; second version: LLaVA-Next-13B prefill 2.3 times
            faster, decode throughput 2.8 times; lengths and GPU not known here""",
            source="abstracts of both versions",
        ),
        composes="`mustdrop` (fewer tokens before the language model), flash kernels.",
        conflicts="`minference` and `lazyllm`: choose one way to thin the prefill.",
    ),
    MethodCard(
        "mustdrop",
        stage="prefill",
        paper=Paper(
            "Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model",
            arxiv="2411.10803",
            venue="arXiv, 2024",
        ),
        slots=("prompt_rule", "retention"),
        exact=False,
        chunking="whole",
        needs=("a vision-language model",),
        summary="""Prunes image tokens along their whole life, without training. In the vision encoder windows of
        near-identical patches are merged, and the few patches most attended are protected. During prefill, image
        tokens that no text token cares about are dropped after a few layers. Afterwards the cache of every pruned
        layer is compacted to the survivors, so that decode reads less.""",
        when_not="For reading fine print in images at extreme ratios.",
        claim=Claim(
            "88.5% fewer FLOPs with 92.2% of the image tokens removed, accuracy comparable",
            setting="LLaVA, with 576 image tokens per image; benchmark tables not at hand",
            source="abstract",
        ),
        composes="`zipvl`-like precision of the cache, quantisation.",
        conflicts="Prefix caching across questions on one image (survivors depend on the question), CUDA graphs.",
    ),
)
