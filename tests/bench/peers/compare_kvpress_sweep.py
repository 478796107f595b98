"""A sweep of 7 policies × 4 ratios, suffix perplexity of 2 windows: a kvpress loop and one keepsight-cli ppl, in one run.

    python tests/bench/peers/compare_kvpress_sweep.py [--rounds 1] [--window 1024 --split 512 --windows 2] [--json F]

Needs torch, transformers, kvpress and gguf in this Python, and a built keepsight-cli; nothing else should run on the machine. kvpress
prefills for each policy, ratio and window; we prefill once per window and branch. kvpress has no h2o and no window: observed_attention
(eager, as it asks for) and streaming_llm without sinks stand in their places, and full runs once as it knows no ratio. Perplexities are
compared where both sides run the same policy. Times leave model loading out on kvpress's side and include it on ours.
"""
import argparse
import math
import time

import kvpress
import torch
from transformers import DynamicCache

from side_by_side import addArguments, machine, median, report, runCli, spread
import peer

RATIOS = [0.1, 0.3, 0.5, 0.7]
# our policy: kvpress's, whether the two are the same computation
POLICIES = {
    "full": (None, True),
    "knorm": (kvpress.KnormPress, True),
    "snapkv": (kvpress.SnapKVPress, True),
    "streaming_llm:rope=original": (kvpress.StreamingLLMPress, True),
    "tova": (kvpress.TOVAPress, True),
    "h2o": (kvpress.ObservedAttentionPress, False),
    "window": (lambda ratio: kvpress.StreamingLLMPress(ratio, n_sink=0), True),
}


@torch.no_grad()
def cell(model, windows, split, press):
    """Mean suffix loss, and the seconds spent in prefill and in the suffix."""
    losses, prefill, suffix = [], 0.0, 0.0
    for ids in windows:
        cache, start = DynamicCache(), time.perf_counter()
        if press is None:
            head = model(ids[None, :split], past_key_values=cache, logits_to_keep=1)
        else:
            with press(model):
                head = model(ids[None, :split], past_key_values=cache, logits_to_keep=1)
        middle = time.perf_counter()
        tail = model(ids[None, split:], past_key_values=cache, position_ids=torch.arange(split, len(ids))[None])
        logits = torch.cat([head.logits[0, -1:], tail.logits[0, :-1]])
        losses.append(torch.nn.functional.cross_entropy(logits.double(), ids[split:]).item())
        prefill, suffix = prefill + middle - start, suffix + time.perf_counter() - middle
    return sum(losses) / len(losses), prefill, suffix


def sweepPeer(models, windows, split, ratios):
    nll, prefill, suffix = {}, 0.0, 0.0
    for policy, (press, _) in POLICIES.items():
        model = models["eager" if press is kvpress.ObservedAttentionPress else "sdpa"]
        for ratio in ratios if press else [0.0]:
            nll[policy, ratio], p, s = cell(model, windows, split, press(ratio) if press else None)
            prefill, suffix = prefill + p, suffix + s
    return nll, prefill, suffix


def sweepOurs(a):
    policies = [word for policy in POLICIES for word in ("--policy", policy)]
    start = time.perf_counter()
    out = runCli(a, "fp32", "ppl", "--text-file", str(peer.TEXT), *policies, "--compression-ratio", ",".join(map(str, a.ratio)),
                 "--protocol", "suffix", "--max-length", str(a.window), "--prefix-ratio", str(a.split / a.window), "--windows", str(a.windows))
    seconds = time.perf_counter() - start
    ids = {policy.split(":")[0]: policy for policy in POLICIES}
    nll = {}
    for row in out["rows"]:
        policy = ids[row["policy"]]
        nll[policy, 0.0 if policy == "full" else row["compression_ratio"]] = row["nll"]
    return nll, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    addArguments(parser)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--window", type=int, default=1024, help="tokens of a window")
    parser.add_argument("--split", type=int, default=512, help="of these, the prefix that is compressed")
    parser.add_argument("--ratio", nargs="*", type=float, default=RATIOS)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    models = {kind: peer.load(a.gguf, attention=kind) for kind in ("sdpa", "eager")}
    ids = peer.tokens(a.gguf)
    windows = [ids[w * a.window:(w + 1) * a.window] for w in range(a.windows)]
    cell(models["sdpa"], windows[:1], a.split, None)  # warm-up
    peerTimes, prefillTimes, ourTimes, ourNll = [], [], [], {}
    for turn in range(a.rounds):
        def runPeer():
            nll, prefill, suffix = sweepPeer(models, windows, a.split, a.ratio)
            peerTimes.append(prefill + suffix)
            prefillTimes.append(prefill)
            return nll
        if turn % 2 == 0:
            peerNll = runPeer()
        if not a.peer_only:
            ourNll, seconds = sweepOurs(a)
            ourTimes.append(seconds)
        if turn % 2 == 1:
            peerNll = runPeer()
    print(f"{machine()}, {a.threads} threads, fp32, {a.windows} windows of {a.window}, prefix {a.split}")
    print(f"{'policy':28} {'ratio':>5} {'kvpress ppl':>12} {'keepsight ppl':>14} {'difference':>11}")
    rows = []
    for (policy, ratio), loss in peerNll.items():
        row = {"policy": policy, "compression_ratio": ratio, "same_policy": POLICIES[policy][1], "kvpress_ppl": math.exp(loss)}
        text = f"{policy:28} {ratio:5.1f} {math.exp(loss):12.4f}"
        if (policy, ratio) in ourNll:
            row["keepsight_ppl"] = math.exp(ourNll[policy, ratio])
            text += f" {row['keepsight_ppl']:14.4f}"
            if row["same_policy"]:
                row["difference_percent"] = 100 * (row["keepsight_ppl"] / row["kvpress_ppl"] - 1)
                text += f" {row['difference_percent']:+9.4f} %"
        print(text)
        rows.append(row)
    print(f"kvpress loop {median(peerTimes):.1f} s (±{spread(peerTimes):.1f} %), of which prefill {median(prefillTimes):.1f} s, {len(peerNll)} cells")
    data = {"schema": "keepsight.compare_kvpress_sweep/1", "machine": machine(), "threads": a.threads, "rounds": a.rounds, "windows": a.windows, "window": a.window, "split": a.split, **peer.versions(),
            "rows": rows, "kvpress_s": peerTimes, "kvpress_prefill_s": prefillTimes}
    if ourTimes:
        data.update(keepsight_s=ourTimes, speedup=median(peerTimes) / median(ourTimes))
        print(f"keepsight    {median(ourTimes):.1f} s (±{spread(ourTimes):.1f} %), model loading included: {data['speedup']:.2f} times as fast")
    report(a, data)


main()
