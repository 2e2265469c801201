#!/usr/bin/env python3
"""Makes the golden scores and embeddings: what transformers gives for the prompts of make_goldens.py.

    python3 tests/golden/make_encode_goldens.py [NAME ...]

Needs what make_goldens.py does, whose models and fixtures it reads; run once, its output is committed.

    data/NAME/encode-fp32.bin   of the model in fp32, weights as they are in the file
    data/NAME/encode-bf16.bin   the same with every weight rounded to bf16 first, computed in fp32

A fixture, all numbers little-endian, no padding; no prompt has more than TOKENS_MAX tokens:

    offset  size            meaning
    0       8               magic, the bytes "TNDENC01"
    8       u32             prompts_count
    12      u32             hidden: numbers of an embedding
    16                      prompts_count times:
            u32             tokens_count of the prompt
            u32             ids[tokens_count]
            f32 f32         tokens_count - 1 times: log-probability of token i + 1 given those before it,
                            and the spread (best minus worst) of the logits that it comes from
            f32             last[hidden]: the last token's state after the final norm, of length 1
            f32             mean[hidden]: the mean of all tokens' states, of length 1
"""
import struct
import sys

import numpy as np
import torch
from make_goldens import DATA, DEMO_MODEL, DTYPES, MODELS, load_oracle

TOKENS_MAX = 1000


def prompts_of(path):
    """The ids of the prompts in a fixture of make_goldens.py."""
    data = path.read_bytes()
    count, vocab, greedy_count = struct.unpack_from("<III", data, 8)
    at, prompts = 20, []
    for _ in range(count):
        tokens, logits_from = struct.unpack_from("<II", data, at)
        prompts.append(np.frombuffer(data, "<u4", tokens, at + 8).tolist())
        at += 8 + 4 * tokens + 4 * vocab * (tokens - logits_from) + 12 * greedy_count
    return [p for p in prompts if len(p) <= TOKENS_MAX]


def unit(v):
    return (v / np.sqrt((v * v).sum())).astype("<f4").tobytes()


@torch.no_grad()
def fixture(model, prompts):
    out = [b"TNDENC01", struct.pack("<II", len(prompts), model.config.hidden_size)]
    for ids in prompts:
        states = model.model(input_ids=torch.tensor([ids])).last_hidden_state
        logits = model.lm_head(states)[0].double()
        logprobs = torch.log_softmax(logits, -1)
        spread = logits.max(-1).values - logits.min(-1).values
        out.append(struct.pack("<I", len(ids)) + np.asarray(ids, "<u4").tobytes())
        for i in range(len(ids) - 1):
            out.append(struct.pack("<ff", logprobs[i, ids[i + 1]].item(), spread[i].item()))
        states = states[0].double().numpy()
        out += [unit(states[-1]), unit(states.mean(0))]
    return b"".join(out)


def main():
    torch.set_num_threads(1)
    for name in sys.argv[1:] or [*MODELS, "demo"]:
        folder = DEMO_MODEL if name == "demo" else DATA / name / "model"
        for kind in ("fp32", "bf16"):
            prompts = prompts_of(DATA / name / f"{kind}.bin")
            data = fixture(load_oracle(folder, DTYPES[kind]), prompts)
            (DATA / name / f"encode-{kind}.bin").write_bytes(data)
            print(f"{name} {kind}: {len(prompts)} prompts, {len(data)} bytes")


if __name__ == "__main__":
    main()
