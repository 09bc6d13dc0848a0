"""Planned: keeping and reusing keys and values."""

from headstart.methods.registry import Claim, MethodCard, Paper, planned

planned(
    MethodCard(
        "cacheblend",
        stage="cache",
        paper=Paper(
            "CacheBlend: Fast Large Language Model Serving for RAG with Cached Knowledge Fusion",
            arxiv="2405.16444",
            venue="EuroSys 2025",
        ),
        slots=("prefill", "kv_store"),
        exact=False,
        chunking="whole",
        needs=("stored caches of text chunks that recur",),
        summary="""Reuses the stored caches of text chunks wherever they stand in a new prompt, not only as its
        prefix. Keys are rotated to their new positions. Layer by layer the roughly 15 percent of the tokens whose
        keys and values deviate most are then computed anew, which restores attention between chunks. Meanwhile the
        next layer's cache is loaded, so that slower and larger storage becomes usable.""",
        when_not="For text that does not recur, or when contexts are short.",
        claim=Claim(
            "time to first token 2.2 to 3.3 times shorter, throughput 2.8 to 5 times higher",
            setting="""against full recomputation, at a loss of at most 0.01 to 0.03 in F1 or Rouge-L; Mistral-7B,
            Yi-34B and Llama-70B on A40 GPUs, 6 chunks of 512 tokens, caches on NVMe""",
            source="abstract and paper",
        ),
        composes="Quantised chunk caches, paged caches.",
        conflicts="`ape` (the other cure for the same problem), eviction within stored chunks.",
    ),
)
