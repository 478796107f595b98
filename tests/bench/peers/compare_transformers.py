"""Prefill and decode speed on the CPU: transformers and keepsight-cli bench, alternating in one run.

    python tests/bench/peers/compare_transformers.py [--rounds 5] [--dtype fp32 bf16] [--json F]

Needs torch, transformers, accelerate and gguf in this Python, and a built keepsight-cli; nothing else should run on the machine. Prefill is one
forward over 512 tokens, last logits only; decode is greedy steps after a cache of 512 and of 2048 tokens. Tokens per second, median.
"""
import argparse
import time

import torch
from transformers import DynamicCache

from side_by_side import addArguments, benchCli, inTurns, machine, median, report, spread
import peer

CONTEXTS = [512, 2048]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Peer:
    def __init__(self, gguf, dtype, new):
        self.model, self.ids, self.new = peer.load(gguf, DTYPES[dtype]), peer.tokens(gguf), new
        self.prefill(64)

    @torch.no_grad()
    def prefill(self, context):
        cache = DynamicCache()
        start = time.perf_counter()
        logits = self.model(self.ids[None, :context], past_key_values=cache, logits_to_keep=1).logits
        return time.perf_counter() - start, cache, logits[0, -1].argmax()

    @torch.no_grad()
    def decode(self, cache, token):
        for _ in range(2):  # warm-up
            token = self.model(token.view(1, 1), past_key_values=cache).logits[0, -1].argmax()
        start = time.perf_counter()
        for _ in range(self.new):
            token = self.model(token.view(1, 1), past_key_values=cache).logits[0, -1].argmax()
        return (time.perf_counter() - start) / self.new

    def measure(self):
        result = {}
        for context in CONTEXTS:
            seconds, cache, token = self.prefill(context)
            result[f"prefill@{context}"] = context / seconds
            result[f"decode@{context}"] = 1 / self.decode(cache, token)
        return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    addArguments(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=32, help="decode steps per measurement")
    parser.add_argument("--dtype", nargs="*", default=list(DTYPES), choices=list(DTYPES))
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    samples = {}  # (dtype, measure) -> {"transformers": [...], "keepsight": [...]}
    for dtype in a.dtype:
        other = Peer(a.gguf, dtype, a.new)
        sides = [("transformers", other.measure)] + ([] if a.peer_only else [("keepsight", lambda: benchCli(a, dtype, CONTEXTS))])
        for side, name, value in inTurns(sides, a.rounds):
            samples.setdefault((dtype, name), {}).setdefault(side, []).append(value)
    rows = []
    print(f"{machine()}, {a.threads} threads, median of {a.rounds}, tokens/s (± half the interquartile range)")
    print(f"{'dtype':6} {'measure':13} {'transformers':>18} {'keepsight':>18} {'ratio':>7}")
    for (dtype, name), sides in samples.items():
        row = {"dtype": dtype, "measure": name}
        for side, values in sides.items():
            row[side] = {"median": median(values), "spread_percent": spread(values), "samples": values}
        cells = [f"{row[s]['median']:10.1f} ±{row[s]['spread_percent']:4.1f} %" if s in row else f"{'–':>18}" for s in ("transformers", "keepsight")]
        if "keepsight" in row:
            row["ratio"] = row["keepsight"]["median"] / row["transformers"]["median"]
        print(f"{dtype:6} {name:13} {cells[0]:>18} {cells[1]:>18} {row.get('ratio', float('nan')):7.2f}")
        rows.append(row)
    report(a, {"schema": "keepsight.compare_transformers/1", "machine": machine(), "threads": a.threads, "rounds": a.rounds, **peer.versions(), "rows": rows})


main()
