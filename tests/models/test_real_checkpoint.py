"""A published Llama, from its files to its logits, against Transformers."""

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from headstart.checkpoints.reader import load_checkpoint
from tests.models.naive_attention import NaiveBatch

DATA = Path(os.environ.get("HEADSTART_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
STORIES = DATA / "checkpoints" / "stories260k"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not STORIES.is_dir(), reason=f"{STORIES} is absent; set HEADSTART_DATA to where it is")
def test_stories_continue_as_in_transformers() -> None:
    checkpoint = load_checkpoint(STORIES)
    assert checkpoint.tokenizer is not None
    model = AutoModelForCausalLM.from_pretrained(STORIES)
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    for prompt in ("Once upon a time", "Tim and Lily saw a big", "The"):
        ids = checkpoint.tokenizer.encode(prompt)
        assert ids == tokenizer.encode(prompt)
        expected = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=40)[0].tolist()
        batch = NaiveBatch(checkpoint.decoder, [len(ids)])
        new = ids
        while len(ids) < len(expected):
            with torch.inference_mode():
                rows = batch.step({0: torch.tensor(new)})[0]
            new = [int(rows[-1].argmax())]
            ids = ids + new
        assert ids == expected
        assert checkpoint.tokenizer.decode(ids) == tokenizer.decode(expected, skip_special_tokens=True)
