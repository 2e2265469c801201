#!/usr/bin/env python3
"""Trains the demo model: a 2.6M-parameter Llama on one text, written as a Hugging Face directory.

    python3 train.py --text tinyshakespeare.txt --out model --work /tmp/demo_model

Needs torch, transformers, tokenizers and safetensors. One thread, seeded: the same packages on the
same machine give the same model. README.md has the figures of the committed model.

--work holds what training needs and the model does not (train.pt: weights, optimizer, random
state). A run that finds it there goes on where it stopped; --steps may then be another number, as
long as the learning rate has not begun to fall (after 70 % of the steps).

How: AdamW; the learning rate rises, stays, then falls linearly to zero. Short windows for most of
the steps, long ones now and then (WINDOWS), up to the full context in the last quarter, so that
attention over long distances is trained too. The text is small for the model, hence much dropout
and weight decay. What is evaluated and exported is a running average of the weights; kept is the
average with the lowest validation loss, which is the mean over short and over long windows.
"""
import argparse
import json
import math
import pathlib
import random
import time

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

BOS, EOS = "<|begin|>", "<|end|>"
VOCAB = 1024
CONTEXT = 8192
TRAIN_SHARE = 0.95  # of the text; the rest is for validation
STEP_TOKENS = 2048
# (share of steps, window length, only in the last quarter)
WINDOWS = [(0.10, 1024, False), (0.04, 2048, False), (0.06, 4096, True), (0.05, 8192, True)]
SHORT_WINDOW, LONG_WINDOW = 256, 8000
BOS_SHARE = 0.8  # windows that begin as a prompt does: BOS, then the start of a speech
LR, WARMUP, DECAY_FROM = 2e-3, 100, 0.7
DROPOUT = 0.2
WEIGHT_DECAY = 0.3
AVERAGE = 0.99


def train_tokenizer(text):
    """Byte-level BPE with GPT-2's pre-tokenizer; encoding a prompt puts BOS in front."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(
        [text],
        trainers.BpeTrainer(
            vocab_size=VOCAB,
            special_tokens=[BOS, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tok.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tok.token_to_id(BOS))]
    )
    return tok


class Windows:
    """Training windows of one token stream, drawn at random."""

    def __init__(self, tok, text):
        enc = tok.encode(text, add_special_tokens=False)
        self.ids = torch.tensor(enc.ids)
        self.bos = torch.tensor([tok.token_to_id(BOS)])
        self.speeches = [
            i for i, (at, _) in enumerate(enc.offsets) if at == 0 or text[at - 2 : at] == "\n\n"
        ]

    def draw(self, rng, length, count):
        """count rows of length + 1 ids: inputs and, one on, targets."""
        rows = []
        for _ in range(count):
            with_bos = rng.random() < BOS_SHARE
            last = len(self.ids) - (length + 1)
            at = rng.randrange(last + 1)
            if with_bos:
                at = min(rng.choice(self.speeches), last)
            row = self.ids[at : at + length + 1]
            rows.append(torch.cat([self.bos, row[:-1]]) if with_bos else row)
        return torch.stack(rows)


def draw_step(windows, rng, progress):
    u = rng.random()
    for share, length, late in WINDOWS:
        if late and progress < 0.75:
            continue
        if u < share:
            return windows.draw(rng, length, max(1, STEP_TOKENS // length))
        u -= share
    return windows.draw(rng, SHORT_WINDOW, STEP_TOKENS // SHORT_WINDOW)


def new_model(tok):
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tok.token_to_id(BOS),
        eos_token_id=tok.token_to_id(EOS),
        pad_token_id=None,
        initializer_range=0.04,
    )
    model = LlamaForCausalLM(config)
    model.model.embed_tokens.register_forward_hook(drop_output)
    for layer in model.model.layers:  # Llama has no dropout; it is added for training only
        layer.self_attn.register_forward_hook(drop_output)
        layer.mlp.register_forward_hook(drop_output)
    return model


def drop_output(module, _, out):
    if isinstance(out, tuple):
        return (torch.dropout(out[0], DROPOUT, module.training),) + out[1:]
    return torch.dropout(out, DROPOUT, module.training)


def loss_of(model, rows, autocast):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits.float().reshape(-1, logits.shape[-1]), rows[:, 1:].reshape(-1)
    )


@torch.no_grad()
def validate(model, ids, length, autocast):
    """Mean loss over the whole validation text in windows of one length."""
    model.eval()
    total = count = 0
    for at in range(0, len(ids) - length, length):
        total += loss_of(model, ids[None, at : at + length + 1], autocast).item()
        count += 1
    model.train()
    return total / max(count, 1)


def learning_rate(step, steps):
    decay_at = int(steps * DECAY_FROM)
    if step < WARMUP:
        return LR * (step + 1) / WARMUP
    if step < decay_at:
        return LR
    return LR * (steps - step) / (steps - decay_at)


def new_optimizer(model):
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}],
        lr=LR,
        betas=(0.9, 0.98),
        fused=True,
    )


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def export(model, tok, weights, out):
    """The Hugging Face directory: what serving reads, and nothing else."""
    out.mkdir(parents=True, exist_ok=True)
    c = model.config
    tensors = {
        name: t.to(torch.bfloat16).contiguous()
        for name, t in weights.items()
        if name != "lm_head.weight"  # tied: the embedding, once more
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    tok.save(str(out / "tokenizer.json"))
    write_json(
        out / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": c.vocab_size,
            "hidden_size": c.hidden_size,
            "intermediate_size": c.intermediate_size,
            "num_hidden_layers": c.num_hidden_layers,
            "num_attention_heads": c.num_attention_heads,
            "num_key_value_heads": c.num_key_value_heads,
            "head_dim": c.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": c.max_position_embeddings,
            "rms_norm_eps": c.rms_norm_eps,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": c.bos_token_id,
            "eos_token_id": c.eos_token_id,
            "torch_dtype": "bfloat16",
        },
    )
    write_json(
        out / "generation_config.json",
        {
            "bos_token_id": c.bos_token_id,
            "eos_token_id": c.eos_token_id,
            "do_sample": True,
            "temperature": 0.8,
            "top_p": 0.95,
        },
    )
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "added_tokens_decoder": {
                str(tok.token_to_id(t)): {"content": t, **special, "special": True}
                for t in (BOS, EOS)
            },
            "bos_token": BOS,
            "eos_token": EOS,
            "clean_up_tokenization_spaces": False,
            "model_max_length": CONTEXT,
        },
    )


@torch.no_grad()
def sample(model, tok, prompt, count, generator):
    """count tokens after prompt, as generation_config.json says (temperature 0.8, top-p 0.95)."""
    model.eval()
    ids, cache, out = torch.tensor([tok.encode(prompt).ids]), None, []
    for _ in range(count):
        r = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = r.past_key_values
        p, order = torch.softmax(r.logits[0, -1] / 0.8, -1).sort(descending=True)
        p[p.cumsum(-1) - p > 0.95] = 0
        out.append(order[torch.multinomial(p, 1, generator=generator)].item())
        ids = torch.tensor([[out[-1]]])
    return tok.decode(out)


class Run:
    """One training: model, its average, optimizer, random state; kept in one file."""

    def __init__(self, args):
        self.args = args
        text = args.text.read_text()
        cut = int(len(text) * TRAIN_SHARE)
        self.tok = train_tokenizer(text[:cut])
        self.windows = Windows(self.tok, text[:cut])
        self.val_ids = Windows(self.tok, text[cut:]).ids
        torch.manual_seed(args.seed)
        self.rng = random.Random(args.seed)
        self.model = new_model(self.tok)
        self.optimizer = new_optimizer(self.model)
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.judge = new_model(self.tok)  # the average's weights, for validation and export
        self.step, self.best = 0, math.inf
        self.path = args.work / "train.pt"
        if self.path.exists():
            self.load()

    def load(self):
        s = torch.load(self.path, weights_only=False)
        self.model.load_state_dict(s["model"])
        self.optimizer.load_state_dict(s["optimizer"])
        self.average, self.step, self.best = s["average"], s["step"], s["best"]
        self.rng.setstate(s["rng"])
        torch.set_rng_state(s["torch_rng"])

    def save(self):
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
            "best": self.best,
            "rng": self.rng.getstate(),
            "torch_rng": torch.get_rng_state(),
        }
        torch.save(state, self.path.with_suffix(".new"))
        self.path.with_suffix(".new").replace(self.path)

    def train_step(self):
        steps = self.args.steps
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, steps)
        rows = draw_step(self.windows, self.rng, self.step / steps)
        loss = loss_of(self.model, rows, self.args.autocast)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        keep = min(AVERAGE, self.step / (self.step + 10))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.average[name].lerp_(value, 1 - keep)
        return loss.item()

    def judge_average(self):
        """Validates the average; exports it when it is the best so far."""
        self.judge.load_state_dict(self.average)
        short = validate(self.judge, self.val_ids, SHORT_WINDOW, self.args.autocast)
        long = validate(self.judge, self.val_ids, LONG_WINDOW, self.args.autocast)
        val = (short + long) / 2
        if val < self.best:
            self.best = val
            export(self.judge, self.tok, self.average, self.args.out)
        self.save()
        return short, long

    def train(self):
        start, recent = time.monotonic(), []
        while self.step < self.args.steps:
            recent.append(self.train_step())
            if self.step % self.args.every and self.step != self.args.steps:
                continue
            short, long = self.judge_average()
            print(
                f"step={self.step} train_loss={sum(recent) / len(recent):.4f} "
                f"val_short={short:.4f} val_long={long:.4f} best={self.best:.4f} "
                f"elapsed_s={time.monotonic() - start:.0f}",
                flush=True,
            )
            recent.clear()


def report(args):
    """Reads the exported directory back, as a server would, and says what it is worth."""
    model = LlamaForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    tok = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    text = args.text.read_text()
    val = Windows(tok, text[int(len(text) * TRAIN_SHARE) :]).ids
    print(f"parameters={sum(p.numel() for p in model.parameters())} validation_tokens={len(val)}")
    for length in (SHORT_WINDOW, 1024, 4096, LONG_WINDOW):
        print(f"window={length} val_loss={validate(model, val, length, False):.4f}")
    g = torch.Generator().manual_seed(args.seed)
    for prompt in ("ROMEO:", "O, what a", "First Citizen:\n"):
        print(f"--- {prompt!r}\n{prompt}{sample(model, tok, prompt, 150, g)}")
    for length in (4000, 8000):
        prompt = tok.decode(val[:length].tolist())
        print(f"--- after {length} tokens\n{sample(model, tok, prompt, 120, g)}")


def main():
    p = argparse.ArgumentParser(description="trains the demo model; see the head of this file")
    p.add_argument("--text", type=pathlib.Path, required=True, help="the text to train on")
    p.add_argument("--out", type=pathlib.Path, required=True, help="where the model goes")
    p.add_argument("--work", type=pathlib.Path, required=True, help="where the state is kept")
    p.add_argument("--steps", type=int, default=4000)
    p.add_argument("--every", type=int, default=200, help="steps between validations")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--autocast", action="store_true", help="bf16, faster with AVX-512-BF16")
    p.add_argument("--report", action="store_true", help="only judge the model in --out")
    args = p.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    if not args.report:
        Run(args).train()
    report(args)


if __name__ == "__main__":
    main()
