#!/usr/bin/env python3
"""Makes the golden logits: tiny random Llama and Mistral models, and what transformers computes for them.

    python3 tests/golden/make_goldens.py [NAME ...]

Needs torch, transformers, safetensors and numpy; run once, its output is committed. Everything is
seeded, so a second run writes the same models (the last bits of the logits depend on torch).
Without names it makes all of MODELS and, from examples/demo_model/model, demo.

    data/NAME/model/    a Hugging Face directory without a tokenizer: config.json and safetensors,
                        one file or sharded (demo has none: its model is examples/demo_model/model)
    data/NAME/fp32.bin  the fixture of transformers in fp32, weights as they are in the file
    data/NAME/bf16.bin  the same with every weight rounded to bf16 first, still computed in fp32

A fixture, all numbers little-endian, no padding:

    offset  size            meaning
    0       8               magic, the bytes "TNDGOLD1"
    8       u32             prompts_count
    12      u32             vocab
    16      u32             greedy_count: tokens in each greedy continuation
    20                      prompts_count times:
            u32             tokens_count of the prompt
            u32             logits_from: the first position whose logits are here (mostly 0)
            u32             ids[tokens_count]
            f32             logits[tokens_count - logits_from][vocab]
            u32 f32 f32     greedy_count times: id, margin, spread

The greedy continuation goes on after the whole prompt and does not stop at an end token. margin is
the best logit minus the second best, spread the best minus the worst, both of the step that chose
id. Whoever compares: fp32 within 1e-4; bf16 within 2 % of a position's spread, and a greedy token
only where margin > 2 * 2 % * spread. (Past the first token that differs, nothing can be compared.)
"""
import json
import pathlib
import shutil
import struct
import sys

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
DATA = HERE / "data"
DEMO_MODEL = HERE.parent.parent / "examples" / "demo_model" / "model"
MAGIC = b"TNDGOLD1"
PROMPT_LENGTHS = (1, 15, 16, 17, 40)  # on both sides of a block's edge (16), and several blocks
WINDOW_LENGTHS = (1, 23, 24, 25, 40, 150)  # on both sides of a window's edge, and several windows
GREEDY_COUNT = 16
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

# What differs from this in each model; head_dim None: not in config.json, hidden / heads.
BASE = {
    "dtype": "fp32",
    "layers": 2,
    "hidden": 48,
    "heads": 3,
    "kv_heads": 1,
    "head_dim": None,
    "ffn": 64,
    "vocab": 80,
    "tied": False,
    "eps": 1e-5,
    "theta": 10000.0,
    "rope_scaling": None,
    "rope_parameters": False,  # rope settings in the one object that transformers 5 writes
    "attention_bias": False,
    "mlp_bias": False,
    "shards": 1,
    "family": "llama",
    "window": None,  # of a mistral
    "prompts": PROMPT_LENGTHS,
}
MODELS = {
    "mha-fp32": {"kv_heads": 3, "vocab": 81},
    "mha-fp16": {"dtype": "fp16", "kv_heads": 3, "eps": 1e-6},
    "gqa-fp32": {"tied": True, "heads": 6, "kv_heads": 2},
    "gqa-bf16": {"dtype": "bf16", "tied": True, "heads": 4, "kv_heads": 2, "hidden": 64},
    "mqa-bf16": {"dtype": "bf16", "heads": 4, "kv_heads": 1, "vocab": 85, "ffn": 50},
    "head-dim-10-fp32": {"hidden": 40, "heads": 4, "eps": 1e-6},
    "head-dim-20-bf16": {"dtype": "bf16", "hidden": 60, "kv_heads": 3, "ffn": 70},
    "head-dim-24-fp32": {"heads": 4, "kv_heads": 2, "head_dim": 24},  # 4 * 24 = 96, not hidden
    "head-dim-36-bf16": {"dtype": "bf16", "heads": 2, "head_dim": 36, "tied": True},
    "rope-llama3-fp32": {"rope_scaling": LLAMA3_ROPE, "theta": 500000.0},
    "rope-llama3-bf16": {
        "dtype": "bf16",
        "rope_scaling": LLAMA3_ROPE,
        "theta": 500000.0,
        "rope_parameters": True,
    },
    "attention-bias-fp32": {"attention_bias": True, "eps": 1e-3},
    "mlp-bias-bf16": {"dtype": "bf16", "mlp_bias": True, "attention_bias": True, "tied": True},
    "sharded-bf16": {"dtype": "bf16", "shards": 3, "layers": 3},
    "mistral-fp32": {
        "family": "mistral",
        "heads": 4,
        "kv_heads": 2,
        "window": 24,
        "prompts": WINDOW_LENGTHS,
    },
    "mistral-bf16": {
        "dtype": "bf16",
        "family": "mistral",
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,  # 4 * 16 = 64, not hidden
        "window": 21,
        "prompts": WINDOW_LENGTHS,
    },
    "mistral-whole-fp32": {"family": "mistral", "heads": 6, "kv_heads": 2},
}


def config_of(m):
    """config.json as published models have it."""
    c = {
        "architectures": [m["family"].capitalize() + "ForCausalLM"],
        "model_type": m["family"],
        "vocab_size": m["vocab"],
        "hidden_size": m["hidden"],
        "intermediate_size": m["ffn"],
        "num_hidden_layers": m["layers"],
        "num_attention_heads": m["heads"],
        "num_key_value_heads": m["kv_heads"],
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": m["eps"],
        "tie_word_embeddings": m["tied"],
        "attention_bias": m["attention_bias"],
        "mlp_bias": m["mlp_bias"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": str(DTYPES[m["dtype"]]).removeprefix("torch."),
    }
    if m["family"] == "mistral":
        c["sliding_window"] = m["window"]
        del c["attention_bias"], c["mlp_bias"]
    if m["head_dim"]:
        c["head_dim"] = m["head_dim"]
    if m["rope_parameters"]:
        c["rope_parameters"] = {"rope_theta": m["theta"], **(m["rope_scaling"] or {})}
    else:
        c["rope_theta"] = m["theta"]
        c["rope_scaling"] = m["rope_scaling"]
    return c


def weights_of(m, seed):
    """Random weights, scaled so that scores and logits neither vanish nor saturate."""
    rng = np.random.default_rng(seed)
    hidden, ffn = m["hidden"], m["ffn"]
    head_dim = m["head_dim"] or hidden // m["heads"]
    q, kv = m["heads"] * head_dim, m["kv_heads"] * head_dim
    out = {}

    def matrix(name, rows, cols, gain=1.0, bias=False):
        out[name + ".weight"] = rng.standard_normal((rows, cols)) * gain / np.sqrt(cols)
        if bias:
            out[name + ".bias"] = rng.standard_normal(rows) * 0.3

    def norm(name):
        out[name + ".weight"] = 1 + 0.2 * rng.standard_normal(hidden)

    matrix("model.embed_tokens", m["vocab"], hidden, 2.0)
    for i in range(m["layers"]):
        p = f"model.layers.{i}."
        norm(p + "input_layernorm")
        matrix(p + "self_attn.q_proj", q, hidden, 1.0, m["attention_bias"])
        matrix(p + "self_attn.k_proj", kv, hidden, 1.0, m["attention_bias"])
        matrix(p + "self_attn.v_proj", kv, hidden, 1.0, m["attention_bias"])
        matrix(p + "self_attn.o_proj", hidden, q, 1.0, m["attention_bias"])
        norm(p + "post_attention_layernorm")
        matrix(p + "mlp.gate_proj", ffn, hidden, 1.0, m["mlp_bias"])
        matrix(p + "mlp.up_proj", ffn, hidden, 1.0, m["mlp_bias"])
        matrix(p + "mlp.down_proj", hidden, ffn, 1.0, m["mlp_bias"])
    norm("model.norm")
    if not m["tied"]:
        matrix("lm_head", m["vocab"], hidden, 2.0)
    return {k: torch.from_numpy(v).to(DTYPES[m["dtype"]]) for k, v in out.items()}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_model(m, weights, folder):
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config_of(m))
    if m["shards"] == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    shards = [{} for _ in range(m["shards"])]
    file_of = {}
    for i, name in enumerate(weights):  # dealt out in turn: a layer's tensors lie in several files
        n = i % m["shards"]
        shards[n][name] = weights[name]
        file_of[name] = f"model-{n + 1:05}-of-{m['shards']:05}.safetensors"
    for n, shard in enumerate(shards):
        path = folder / f"model-{n + 1:05}-of-{m['shards']:05}.safetensors"
        save_file(shard, path, metadata={"format": "pt"})
    size = sum(t.numel() * t.element_size() for t in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(file_of.items()))}
    write_json(folder / "model.safetensors.index.json", index)


def load_oracle(folder, weights_dtype):
    """transformers in fp32; its weights rounded to weights_dtype first."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            sys.exit(f"make_goldens: {folder}: {kind} {info[kind]}")
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.to(weights_dtype).float())
    return model.eval()


@torch.no_grad()
def fixture(model, prompts, log):
    """The bytes of a fixture; prompts: (ids, logits_from)."""
    vocab = model.config.vocab_size
    out = [MAGIC, struct.pack("<III", len(prompts), vocab, GREEDY_COUNT)]
    for ids, logits_from in prompts:
        r = model(input_ids=torch.tensor([ids]), use_cache=True)
        logits = r.logits[0]
        out.append(struct.pack("<II", len(ids), logits_from))
        out.append(np.asarray(ids, "<u4").tobytes())
        out.append(logits[logits_from:].numpy().astype("<f4").tobytes())
        for _ in range(GREEDY_COUNT):
            top = torch.topk(logits[-1], 2)
            margin = (top.values[0] - top.values[1]).item()
            spread = (logits[-1].max() - logits[-1].min()).item()
            best = top.indices[0].item()
            out.append(struct.pack("<Iff", best, margin, spread))
            log.append((margin, spread))
            r = model(input_ids=torch.tensor([[best]]), past_key_values=r.past_key_values)
            logits = r.logits[0]
    return b"".join(out)


def write_fixtures(name, model_folder, prompts):
    for kind in ("fp32", "bf16"):
        log = []
        data = fixture(load_oracle(model_folder, DTYPES[kind]), prompts, log)
        (DATA / name / f"{kind}.bin").write_bytes(data)
        spread = sum(s for _, s in log) / len(log)
        sure = sum(m > 0.04 * s for m, s in log)
        print(f"{name} {kind}: {len(data)} bytes, spread {spread:.1f}, sure {sure}/{len(log)}")


def make(name):
    m = {**BASE, **MODELS[name]}
    seed = 1000 + list(MODELS).index(name)
    shutil.rmtree(DATA / name, ignore_errors=True)
    write_model(m, weights_of(m, seed), DATA / name / "model")
    rng = np.random.default_rng(seed + 1000)
    prompts = [(rng.integers(0, m["vocab"], n).tolist(), 0) for n in m["prompts"]]
    write_fixtures(name, DATA / name / "model", prompts)


@torch.no_grad()
def demo_prompt(model, count, generator):
    """count tokens as the demo model itself speaks them, from its BOS."""
    ids = [model.config.bos_token_id]
    cache = None
    while len(ids) < count:
        r = model(input_ids=torch.tensor([ids[-1:]]), past_key_values=cache, use_cache=True)
        cache = r.past_key_values
        p = torch.softmax(r.logits[0, -1] / 0.8, -1)
        ids.append(torch.multinomial(p, 1, generator=generator).item())
    return ids


def make_demo():
    """The bundled model: short prompts in full, long ones by their last logits."""
    shutil.rmtree(DATA / "demo", ignore_errors=True)
    (DATA / "demo").mkdir(parents=True)
    model = load_oracle(DEMO_MODEL, torch.float32)
    g = torch.Generator().manual_seed(1)
    prompts = []
    for count, logits_count in ((1, 1), (17, 8), (40, 8), (1000, 8), (4100, 4)):
        prompts.append((demo_prompt(model, count, g), count - logits_count))
    write_fixtures("demo", DEMO_MODEL, prompts)


def main():
    torch.set_num_threads(1)
    for name in sys.argv[1:] or [*MODELS, "demo"]:
        if name == "demo":
            make_demo()
        else:
            make(name)


if __name__ == "__main__":
    main()
