"""What PyTorch makes of the layers of a shape on the same GPU, for comparison: its matrix products and its
scaled_dot_product_attention. The names are those of gpu_bench, with torch_ in front.

    python3 tests/gpu/torch_side.py 8b|1b        prints one JSON object as its last line

Each figure is the best of several runs; numbers are random bf16."""
import json
import sys
import time

import torch
import torch.nn.functional as F

SHAPES = {
    "8b": dict(hidden=4096, layers=32, heads=32, kv_heads=8, head_dim=128, ffn=14336, vocab=128256),
    "1b": dict(hidden=2048, layers=16, heads=32, kv_heads=8, head_dim=64, ffn=8192, vocab=128256),
}
PREFILL = (512, 2048, 8192)
BATCHES = (1, 8, 32, 128)
CONTEXTS = (1024, 8192)


def seconds(run, repeats=10, runs=3):
    run()
    best = 1e9
    for _ in range(runs):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(repeats):
            run()
        torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - began) / repeats)
    return best


def random(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def matrices(s):
    """(outputs, inputs) of one layer's products."""
    q, kv = s["heads"] * s["head_dim"], s["kv_heads"] * s["head_dim"]
    return [(q + 2 * kv, s["hidden"]), (s["hidden"], q), (2 * s["ffn"], s["hidden"]),
            (s["hidden"], s["ffn"])]


def products(figures, s, rows):
    """One layer's four products, as TFLOP/s and as bytes of weights per second."""
    pairs = [(random(rows, k), random(n, k)) for n, k in matrices(s)]
    took = seconds(lambda: [F.linear(x, w) for x, w in pairs])
    weights = sum(n * k for n, k in matrices(s))
    figures[f"torch_products_{rows}_tflop_s"] = 2 * weights * rows / took / 1e12
    figures[f"torch_products_{rows}_weights_gb_s"] = 2 * weights / took / 1e9


def prefill_attention(figures, s, rows):
    q = random(1, s["heads"], rows, s["head_dim"])
    k, v = (random(1, s["kv_heads"], rows, s["head_dim"]) for _ in range(2))
    took = seconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), 5)
    flops = 2 * rows * (rows + 1) * s["heads"] * s["head_dim"]
    figures[f"torch_attend_prefill_{rows}_tflop_s"] = flops / took / 1e12


def decode_attention(figures, s, batch, context):
    q = random(batch, s["heads"], 1, s["head_dim"])
    k, v = (random(batch, s["kv_heads"], context, s["head_dim"]) for _ in range(2))
    took = seconds(lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), 5)
    read = 2 * 2 * batch * context * s["kv_heads"] * s["head_dim"]
    figures[f"torch_attend_decode_{batch}_behind_{context}_gb_s"] = read / took / 1e9


class Figures(dict):
    """Each is told when it is known, for a run that is cut off."""

    def __setitem__(self, name, value):
        print(f"{name:60} {value:12.2f}", file=sys.stderr, flush=True)
        super().__setitem__(name, value)


def main():
    s = SHAPES[sys.argv[1]]
    figures = Figures()
    print(f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}", file=sys.stderr)
    side = random(8192, 8192)
    figures["torch_peak_tflop_s"] = 2 * 8192**3 / seconds(lambda: side @ side) / 1e12
    big = torch.empty(1 << 32, device="cuda", dtype=torch.uint8)
    other = torch.empty_like(big)
    figures["torch_copy_gb_s"] = 2 * big.numel() / seconds(lambda: other.copy_(big)) / 1e9
    del big, other
    for rows in BATCHES + PREFILL:
        products(figures, s, rows)
    for rows in PREFILL:
        prefill_attention(figures, s, rows)
    for batch in BATCHES:
        for context in CONTEXTS:
            if batch * context <= 32 * 8192:
                decode_attention(figures, s, batch, context)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


main()
