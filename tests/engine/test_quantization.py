"""Quantised weights in the engine: less memory, text all the same, and nobody takes it for the exact model."""

import pytest
import torch

from headstart import LLM, SamplingParams
from headstart.checkpoints.random_init import random_checkpoint
from headstart.engine.args import EngineArgs
from headstart.engine.engine import Engine
from headstart.engine.seams import LinearOp
from headstart.engine.stack import Stack
from headstart.errors import HeadstartError, MethodError
from headstart.evaluation.quality_divergence import exact_twin
from headstart.models.decoder import Decoder
from headstart.models.layers import Linear, Quantized
from headstart.ops.quantized import QUANTIZATIONS
from tests.engine.test_seams import as_method

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}
EXPERTS = {
    **CONFIG,
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
PROMPT = list(range(3, 40))


def engine_of(config, **settings) -> Engine:
    args = EngineArgs(device="cpu", skip_tokenizer_init=True, num_pages=20, **settings)
    return Engine(args, random_checkpoint(config, dtype="float32", seed=0))


def logits_of(engine: Engine) -> torch.Tensor:
    """Of the prompt's last token, through the cache."""
    engine.submit(engine.prepare("a", PROMPT, SamplingParams(max_tokens=3, temperature=0, logprobs=50)))
    outputs = []
    while engine.has_work:
        outputs = engine.step() or outputs
    output = outputs[-1].outputs[0]
    assert len(output.token_ids) >= 1 and outputs[-1].exact == engine.exact
    return torch.tensor([output.logprobs[0][token].logprob for token in range(50)])


def held_bytes(decoder: Decoder) -> int:
    return sum(tensor.nbytes for tensor in decoder.layers.state_dict().values())


@pytest.mark.parametrize("kind", QUANTIZATIONS)
@pytest.mark.parametrize("config", [CONFIG, EXPERTS], ids=["dense", "experts"])
def test_nearly_the_same_model_in_a_quarter_of_float32(kind, config):
    plain, quantized = engine_of(config), engine_of(config, quantization=kind)
    want, got = logits_of(plain), logits_of(quantized)
    assert 0 < (want.exp() - got.exp()).abs().sum() < 0.1
    assert held_bytes(quantized.checkpoint.decoder) < 0.35 * held_bytes(plain.checkpoint.decoder)
    assert plain.exact and not quantized.exact
    assert plain.stack.fingerprint == "" != quantized.stack.fingerprint


def test_what_stays_as_it_is():
    """The output layer and routers keep their weights, and a caller's model is left alone."""
    checkpoint = random_checkpoint(EXPERTS, dtype="float32", seed=0)
    args = EngineArgs(device="cpu", skip_tokenizer_init=True, num_pages=20, quantization="int8")
    decoder = Engine(args, checkpoint).checkpoint.decoder
    linears = {name: module for name, module in decoder.named_modules() if isinstance(module, Linear)}
    plain = {name for name, module in linears.items() if not isinstance(module.op, Quantized)}
    assert plain == {"lm_head", "layers.0.mlp.router", "layers.1.mlp.router"}
    assert not any(isinstance(module, Quantized) for module in checkpoint.decoder.modules())
    assert not hasattr(linears["layers.0.attention.qkv"], "weight")
    assert decoder.layers[0].mlp.gate_up.values.dtype == torch.int8


def test_each_kind_has_keys_of_its_own():
    prints = {engine_of(CONFIG, quantization=kind).stack.identity(10) for kind in QUANTIZATIONS}
    assert len(prints) == 2 and "" not in prints


def test_text_of_a_real_model(stories):
    """A model of 260 thousand weights says nearly what it says without."""
    params = SamplingParams(max_tokens=30, temperature=0)
    for kind in QUANTIZATIONS:
        text = LLM(stories, quantization=kind).generate("Once upon a time", params)[0].outputs[0].text
        assert text.strip().startswith(", there was a") or " was " in text


def test_the_exact_twin_is_not_quantised(stories):
    engine = Engine(EngineArgs(model=stories, quantization="int8", num_pages=20, page_size=16))
    twin = exact_twin(engine)
    assert twin.exact and twin.args.quantization is None
    assert not any(isinstance(module, Quantized) for module in twin.checkpoint.decoder.modules())


def test_an_unknown_kind_is_refused():
    with pytest.raises(HeadstartError, match=r"^quantization must be fp8 or int8, not 'int4'$"):
        EngineArgs(quantization="int4")


def test_a_method_that_applies_weights_is_refused():
    class Doubled(LinearOp):
        def bind(self, name, module):
            return None

    with pytest.raises(MethodError, match="decides how weights are applied, as quantization does: use one of them"):
        engine_of(CONFIG, quantization="int8", use=[as_method(Doubled)])
    assert Stack([as_method(Doubled)]).filled("linear")
