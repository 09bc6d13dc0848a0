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
