"""Train the stopgap story model: under a million weights, minutes on one CPU core.

    pip install -e '.[train]'
    python recipes/stopgap/train.py --data DATA --out headstart/checkpoints/default

DATA holds `text/books-core.jsonl.xz` (training) and `text/books-val.jsonl.xz` (held out), one book a line with
the fields author, title and text.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from corpus import ASSISTANT, END, SPECIAL_TOKENS, TEXT_END, USER, documents, held_out_books, training_books
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

POSITIONS = 2048
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    + ASSISTANT
    + "{{ message['content'] }}"
    + END
    + "{% else %}"
    + USER
    # A story model knows no system role: what a system message says is read as the user's words.
    + "{{ message['content'] }}"
    + END
    + "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of `vocab_size` tokens, special tokens included; any bytes can be written with it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """The texts as one stream of token ids `[N]`, int64."""
    return torch.from_numpy(np.concatenate([np.asarray(e.ids, dtype=np.int64) for e in tokenizer.encode_batch(texts)]))


def build_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """A Llama of 0.77 million weights: 4 layers of width 128, 4 query heads on 2 KV heads, tied embeddings."""
    text_end, end = tokenizer.token_to_id(TEXT_END), tokenizer.token_to_id(END)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=288,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=text_end,
        eos_token_id=[text_end, end],
        initializer_range=0.05,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                # Residual branches start small, so that depth does not inflate the stream.
                weight.mul_(1 / math.sqrt(2 * config.num_hidden_layers))
    return model


@torch.no_grad()
def bits_per_byte(model: LlamaForCausalLM, tokenizer: Tokenizer, text: str) -> float:
    """Held-out loss in bits per UTF-8 byte, over windows of the model's length that do not overlap."""
    ids = encode(tokenizer, [text])
    nats = 0.0
    for start in range(0, len(ids) - 1, POSITIONS):
        window = ids[start : start + POSITIONS + 1]
        logits = model(window[None, :-1]).logits[0].float()
        nats += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
    return nats / math.log(2) / len(text.encode())


def train(model: LlamaForCausalLM, stream: torch.Tensor, args: argparse.Namespace) -> None:
    """AdamW on random windows: short ones first (cheap attention), the last tenth at the model's length."""

    def plain_loss(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = model(ids, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    # Compiling pays for the many short windows only: at the model's length the eager attention is faster.
    short_loss = torch.compile(plain_loss, dynamic=False) if args.compile else plain_loss
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.95),
    )
    generator = torch.Generator().manual_seed(args.seed)
    long_from = args.steps * 9 // 10
    began = time.monotonic()
    for step in range(args.steps):
        length = 256 if step < long_from else POSITIONS
        rows = args.tokens_per_step // length
        starts = torch.randint(len(stream) - length - 1, (rows,), generator=generator)
        window = stream[starts[:, None] + torch.arange(length + 1)]
        decay = min(1.0, (args.steps - step) / (0.5 * args.steps))
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (step + 1) / 100) * decay
        loss = (short_loss if step < long_from else plain_loss)(window[:, :-1], window[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == args.steps - 1:
            print(f"step {step} loss {loss.item():.4f} {time.monotonic() - began:.0f} s", flush=True)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Write a Hugging Face directory: bfloat16 weights, configs, tokenizer with its chat template."""
    model.to(torch.bfloat16).save_pretrained(out)
    # Stored in half the bytes, run in float32: rounding in bfloat16 would let the batch change the answer.
    config = json.loads((out / "config.json").read_text()) | {"dtype": "float32"}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": TEXT_END,
        "eos_token": TEXT_END,
        "model_max_length": POSITIONS,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    generation = {
        "bos_token_id": model.config.bos_token_id,
        "eos_token_id": model.config.eos_token_id,
        "do_sample": True,
        "temperature": 0.8,
        "top_p": 0.95,
    }
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def main() -> None:
    """Train, measure on held-out books, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--tokens-per-step", type=int, default=4096)
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--conversations", type=float, default=0.15, help="share of conversation beside the books")
    parser.add_argument("--compile", action="store_true", help="needs a C++ compiler; about 1.4 times faster")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    texts = training_books(args.data)
    tokenizer = train_tokenizer(texts, args.vocab_size)
    stream = encode(tokenizer, documents(texts, conversations=args.conversations, seed=args.seed))
    model = build_model(tokenizer)
    weights = sum(p.numel() for p in model.parameters())
    print(f"{len(texts)} books, {len(stream)} tokens, {weights} weights", flush=True)

    model.train()
    began = time.monotonic()
    train(model, stream, args)
    seconds = time.monotonic() - began
    args.out.mkdir(parents=True, exist_ok=True)
    save(model, tokenizer, args.out)

    # What is measured is what was saved: the weights rounded to bfloat16.
    saved = LlamaForCausalLM.from_pretrained(args.out, dtype=torch.float32).eval()
    scores = {title: bits_per_byte(saved, tokenizer, text) for title, text in held_out_books(args.data).items()}
    result = {
        "weights": weights,
        "training_tokens": args.steps * args.tokens_per_step,
        "training_seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seed": args.seed,
        "held_out_bits_per_byte": {
            "mean": round(sum(scores.values()) / len(scores), 4),
            **{title: round(score, 4) for title, score in scores.items()},
        },
    }
    (args.out / "training.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
