"""Planned: which tokens run when."""

from headstart.methods.registry import Claim, MethodCard, Paper, planned

planned(
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
