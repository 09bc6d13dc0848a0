"""Planned: fewer bits."""

from headstart.methods.registry import Claim, MethodCard, Paper, planned

planned(
    MethodCard(
        "flatquant",
        stage="quantize",
        paper=Paper("FlatQuant: Flatness Matters for LLM Quantization", arxiv="2410.09426", venue="ICML 2025"),
        slots=("linear", "transform"),
        exact=False,
        needs=("a calibration on 128 short sequences", "INT4 matrix units for its speed"),
        summary="""Quantises weights, activations and cache to 4 bits after training. The input of each linear layer
        is multiplied by a learned invertible matrix, a Kronecker product of two small ones, and the weight by its
        inverse, so that both become flat and lose little in rounding. Per-channel scales and clipping ratios are
        learned along, block by block, from the outputs on a few sequences. At run time the transform costs two
        small matrix products.""",
        when_not="""For weight-only quantisation, where the gain over plain methods is small, and for decoding at
        batch 1, which was slower than 16 bits in the paper. Hopper GPUs have no INT4 matrix units.""",
        claim=Claim(
            "Llama-3-8B all in 4 bits: WikiText-2 perplexity 6.98 (16 bits: 6.14)",
            setting="""weights, activations and cache in 4 bits, round to nearest, length 2048; QuaRot 10.60,
            SpinQuant 7.96; Llama-2-7B on an RTX 3090 at batch 64: prefill 2.30 and decode 1.76 times faster than
            FP16""",
            source="the paper's tables",
        ),
        composes="GPTQ, KV quantisation, adapters merged before quantising.",
        conflicts="""Methods that need the original keys, such as page statistics of `lserve`, unless taken in its
        basis.""",
    ),
)
