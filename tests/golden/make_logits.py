"""golden/logits.json: what transformers computes for the first 300 tokens of harbour.txt on the default model.

    python tests/golden/make_logits.py --gguf build/models/SmolLM2-135M-Instruct.Q4_1.gguf

nll: mean next-token loss, fp32 and bf16 weights; argmax and margin (top 1 minus top 2) at each position; last_logits: the 64 largest and
256 fixed pseudo-random entries of the last position; greedy: the 64 tokens that follow, with the margin of each choice.
"""
import torch

import peer

a = peer.arguments(__doc__, "logits.json")
ids = peer.tokens(a.gguf)[:300]


def margins(logits):  # [T, vocab] -> [T]
    top = logits.topk(2, dim=-1).values
    return [round(x, 4) for x in (top[:, 0] - top[:, 1]).tolist()]


def entries(logits, where):
    return {"ids": where.tolist(), "values": [float(f"{x:.7g}") for x in logits[where].tolist()]}


with torch.no_grad():
    model = peer.load(a.gguf)
    out = model(ids[None], use_cache=True)
    logits, cache = out.logits[0], out.past_key_values
    last = logits[-1]
    greedy, greedyMargins, step = [], [], last
    while len(greedy) < 64:
        greedy.append(step.argmax().item())
        greedyMargins += margins(step[None])
        step = model(torch.tensor([[greedy[-1]]]), past_key_values=cache).logits[0, -1]
    half = peer.load(a.gguf, torch.bfloat16)
    halfLogits = half(ids[None]).logits[0].float()

sample = torch.randperm(last.numel(), generator=torch.Generator().manual_seed(7))[:256].sort().values
peer.write(a.out, {
    "schema": "keepsight.golden.logits/1", **peer.versions(), "ids": ids.tolist(),
    "nll": peer.meanNll(logits, ids), "nll_bf16": peer.meanNll(halfLogits, ids),
    "argmax": logits.argmax(-1).tolist(), "argmax_margin": margins(logits),
    "last_logits": {"max_abs": last.abs().max().item(), "top": entries(last, last.topk(64).indices), "sample": entries(last, sample)},
    "greedy": greedy, "greedy_margin": greedyMargins,
    "bf16_argmax_agreement": (halfLogits.argmax(-1) == logits.argmax(-1)).double().mean().item(),
})
