"""Planned: keeping and reusing keys and values."""

from headstart.methods.registry import Claim, MethodCard, Paper, planned

planned(
    MethodCard(
        "lserve",
        stage="cache",
        paper=Paper(
            "LServe: Efficient Long-sequence LLM Serving with Unified Sparse Attention",
            arxiv="2502.14866",
            venue="MLSys 2025",
        ),
        slots=("selector.prefill", "selector.decode", "kv_layout"),
        exact=False,
        needs=("gates that tell streaming from retrieval heads, found by a calibration of the checkpoint",),
        min_context=4096,
        summary="""Makes prefill and decode attention sparse in one system. Half of the key-value heads become
        streaming heads, which see and store only the first and the most recent tokens. The other heads read a
        constant budget of cache pages per decode step, chosen by a cheap upper bound on the scores of a page.
        Quantised weights, activations and caches multiply the gain.""",
        when_not="For contexts below the page budget of 4,096 tokens, where it falls back to dense attention.",
        claim=Claim(
            "prefill up to 2.9 times and decode 1.3 to 2.1 times faster than vLLM",
            setting="""at equal accuracy; Llama-3-8B, Llama-2-7B and Minitron-4B on A100 80GB and L40S with W8A8KV8
            or W4A8KV4 quantisation; tables per length not at hand""",
            source="abstract and official README",
        ),
        composes="`minference` on the retrieval heads, KV quantisation, prefix caching with page statistics.",
        conflicts="Eviction that deletes pages of retrieval heads; `hip` on the same layers.",
    ),
)
