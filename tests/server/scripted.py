"""A tiny model of bytes that says what a test wants it to say, with the templates of tool-calling families."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from headstart import AsyncEngine
from headstart.checkpoints.random_init import random_checkpoint
from headstart.checkpoints.writer import save_checkpoint
from headstart.engine.seams import LogitRule
from headstart.methods.registry import MethodCard
from tests.engine.test_engine import TINY

END = 2
_MESSAGES = (
    "{% for m in messages %}{{ m.role }}{% if m.tool_call_id %} {{ m.tool_call_id }}{% endif %}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}CALL{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
_CALL = "{{ c.function.name }}|{{ c.function.arguments | tojson }}"
TEMPLATES = {
    "hermes": "{% if tools %}answer with <tool_call> {{ tools | tojson }}\n{% endif %}"
    + _MESSAGES.replace("CALL", f"<tool_call>{_CALL}</tool_call>"),
    "llama3": '{% if tools %}{"name": function name, "parameters": ...} {{ tools | tojson }}\n{% endif %}'
    + _MESSAGES.replace("CALL", _CALL),
    "no tools": _MESSAGES.replace("CALL", ""),
    "another form": "{{ tools }}" + _MESSAGES.replace("CALL", "[TOOL]"),
}
MARKERS = ("<tool_call>", "</tool_call>", "<|python_tag|>")


def byte_tokenizer(*markers: str) -> Tokenizer:
    """One token per byte, and one for each marker."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": END} | {letter: i + 3 for i, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    # As published: Hermes' markers are ordinary added tokens, Llama's are special ones.
    tokenizer.add_tokens([AddedToken(mark, special=mark.startswith("<|")) for mark in markers])
    return tokenizer


class Script(LogitRule):
    """Makes output i of every request follow line i of `lines`; what lies beyond them is the model's own."""

    card: Any
    lines: tuple[str, ...] = ()

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def apply(self, logits, sequences):
        for row, sequence in zip(logits, sequences, strict=True):
            if sequence.index < len(self.lines):
                ids = [*self.tokenizer.encode(self.lines[sequence.index], add_special_tokens=False).ids, END]
                if sequence.num_output < len(ids):
                    row[ids[sequence.num_output]] += 1e4
        return logits


Script.card = MethodCard("script", "decode", None, False, "any", (), 0, "A test.", Script, Script.slots)


def scripted_model(
    directory: Path, template: str, *, markers: bool = True, longest: int = 4096
) -> tuple[AsyncEngine, Script]:
    """An engine around a random model with one of `TEMPLATES`, and what it says."""
    tokenizer = byte_tokenizer(*(MARKERS if markers else ()))
    config = TINY | {"vocab_size": 272, "max_position_embeddings": longest, "initializer_range": 0.3}
    save_checkpoint(replace(random_checkpoint(config, "float32"), name="scripted"), directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"eos_token": "</s>", "chat_template": TEMPLATES[template]}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    script = Script(tokenizer)
    return AsyncEngine.from_model(str(directory), dtype="float32", max_num_seqs=8, use=[script]), script
