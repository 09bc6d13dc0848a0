"""Planned: which tokens run when."""

from headstart.methods.registry import Claim, MethodCard, Paper, planned

planned(
    MethodCard(
        "distserve",
        stage="schedule",
        paper=Paper(
            "DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language Model Serving",
            arxiv="2401.09670",
            venue="OSDI 2024",
        ),
        slots=("scheduler",),
        needs=("two or more devices with a fast link",),
        summary="""Runs prefill and decode on different GPUs, since they disturb each other on one and want
        different parallelism. The cache moves between them, pulled by the decode side. A search with a latency
        model and a simulator chooses parallelism and numbers of replicas. Its goal is goodput per GPU: the rate of
        requests at which a stated share of them meets both latency targets.""",
        when_not="""With one GPU, loose targets or slow links: chunked prefill on shared GPUs (`sarathi-serve`) is
        simpler and often better.""",
        claim=Claim(
            "up to 7.4 times more requests, or latency targets 12.6 times tighter",
            setting="""OPT-13B, 66B and 175B on 4 nodes of 8 A100 80GB, over 90% of the requests within both
            targets, against vLLM and DeepSpeed-MII; the first version said 4.48 and 10.2 times""",
            source="abstract of the final version; the setting from the paper",
        ),
        composes="Prefix caching, KV quantisation (smaller transfers), `sarathi` within the prefill side.",
        conflicts="Another scheduler in the same place.",
    ),
    MethodCard(
        "batchllm",
        stage="schedule",
        paper=Paper(
            "BatchLLM: Optimizing Large Batched LLM Inference with Global Prefix Sharing and Throughput-oriented Token "
            "Batching",
            arxiv="2412.03594",
            venue="arXiv, 2024",
        ),
        slots=("scheduler",),
        needs=("all prompts of the job in advance",),
        summary="""Plans an offline job whose prompts are all known in advance. It finds prefixes shared over the
        whole job, runs all users of a prefix together and frees it at once. Groups with much decoding start first,
        so that their decodes ride on later prefill chunks. Each step is limited by memory instead of fixed counts,
        and attention over shared and own parts runs in one fused kernel.""",
        when_not="For online traffic, or when prompts share nothing.",
        claim=Claim(
            "1.1 to 2 times faster than vLLM",
            setting="""first version, microbenchmarks and two industry workloads, A100 and MI200; a later version
            says 1.3 to 10.8 times over vLLM and SGLang""",
            source="abstract; the hardware from the paper",
        ),
        composes="`hydragen`, chunks as in `sarathi`, quantised caches.",
        conflicts="Latency targets; keeping prefixes across jobs.",
    ),
)
