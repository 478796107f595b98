"""golden/kvpress.json: suffix perplexity and kept tokens from kvpress itself, on the first two windows of harbour.txt, fp32.

    python tests/golden/make_kvpress.py --gguf build/models/SmolLM2-135M-Instruct.Q4_1.gguf

A window is 1024 tokens: the press works on a prefill of the first 512, the other 512 are scored in one forward at their original
positions, the first of them by the prefill's last logits. nll is the mean over both windows.
kept: base64 of a bit string for the first window; position p of KV head h of layer l is bit i = (l * kv_heads + h) * 512 + p,
found in byte i / 8 as bit i % 8 counted from the lowest.
"""
import base64
import math

import kvpress
import numpy
import torch
from transformers import DynamicCache

import peer

PRESSES = {"knorm": kvpress.KnormPress, "snapkv": kvpress.SnapKVPress, "streaming_llm": kvpress.StreamingLLMPress, "tova": kvpress.TOVAPress}
RATIOS = [0.1, 0.3, 0.5, 0.7]
WINDOW, SPLIT, WINDOWS = 1024, 512, 2


class TopkSpy:
    """Presses choose with Tensor.topk; this records the choices, one tensor [1, kv_heads, kept] per layer."""

    def __enter__(self):
        self.chosen, self.topk = [], torch.Tensor.topk
        spy = self

        def recorded(scores, k, *args, **kwargs):
            result = spy.topk(scores, k, *args, **kwargs)
            spy.chosen.append(result.indices)
            return result

        torch.Tensor.topk = recorded
        return self

    def __exit__(self, *_):
        torch.Tensor.topk = self.topk


def bitString(chosen):  # per layer [1, kv_heads, kept]
    bits = numpy.zeros((len(chosen), chosen[0].shape[1], SPLIT), dtype=numpy.uint8)
    for layer, indices in enumerate(chosen):
        numpy.put_along_axis(bits[layer], indices[0].numpy(), 1, axis=1)
    return base64.b64encode(numpy.packbits(bits.reshape(-1), bitorder="little").tobytes()).decode()


@torch.no_grad()
def windowNll(model, ids, press):
    cache = DynamicCache()
    with TopkSpy() as spy:
        if press is None:
            head = model(ids[None, :SPLIT], past_key_values=cache)
        else:
            with press(model):
                head = model(ids[None, :SPLIT], past_key_values=cache)
    tail = model(ids[None, SPLIT:], past_key_values=cache, position_ids=torch.arange(SPLIT, WINDOW)[None])
    logits = torch.cat([head.logits[0, -1:], tail.logits[0, :-1]]).double()
    return torch.nn.functional.cross_entropy(logits, ids[SPLIT:]).item(), spy.chosen


def main():
    a = peer.arguments(__doc__, "kvpress.json")
    ids, model = peer.tokens(a.gguf), peer.load(a.gguf)
    rows = []
    for policy, ratio in [("full", 0.0)] + [(p, r) for p in PRESSES for r in RATIOS]:
        losses, kept = [], None
        for w in range(WINDOWS):
            loss, chosen = windowNll(model, ids[w * WINDOW:(w + 1) * WINDOW], PRESSES[policy](ratio) if policy != "full" else None)
            losses.append(loss)
            if w == 0 and chosen:
                kept = {"count": chosen[0].shape[-1], "bits": bitString(chosen)}
        nll = sum(losses) / WINDOWS
        rows.append({"policy": policy, "compression_ratio": ratio, "nll": nll, "ppl": math.exp(nll), "per_window": losses, "kept": kept})
        print(f"{policy:14} {ratio:.1f}  nll {nll:.6f}  ppl {math.exp(nll):.4f}", flush=True)
    peer.write(a.out, {
        "schema": "keepsight.golden.kvpress/1", "kvpress": "0.5.5", **peer.versions(), "window": WINDOW, "prefix": SPLIT,
        "layers": model.config.num_hidden_layers, "kv_heads": model.config.num_key_value_heads,
        "n_tokens": WINDOWS * (WINDOW - SPLIT), "ids": ids[:WINDOWS * WINDOW].tolist(), "rows": rows})


main()
