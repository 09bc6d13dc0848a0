"""A byte-level tokenizer of a few hundred tokens, written as a checkpoint's files."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

TEXTS = ["the old king sat on the old stone", "user: hello there, friend", "a tool was called with an answer"]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def write_tokenizer(directory: Path, *, vocab_size: int = 300, **config: Any) -> int:
    """Write `tokenizer.json`, whose texts begin with `<s>`, and `tokenizer_config.json`; returns its size."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(directory / "tokenizer.json"))
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(content | config))
    return tokenizer.get_vocab_size()
