"""golden/kvpress.json: what kvpress itself keeps, and the perplexity after it, on harbour.txt, fp32.

    python tests/golden/make_kvpress.py --gguf build/models/SmolLM2-135M-Instruct.Q4_1.gguf

A press works on a prefill; the tokens behind it are scored in one forward, the first of them by the prefill's last logits.
    short   windows of 1024 tokens: prefill 512, score 512 at their original positions (after key rerotation: going on from the number of
            kept tokens, as kvpress's pipeline does). The first window, and at ratios 0 and 0.5 the second too: nll is the mean.
    long    one window of 2012 tokens: prefill 1500, score 512.
Kept sets are of the first window.
Presses look at a prefill only after its attention, so every press gets the recorded states of one and the same prefill.

rows: spec is our name of the press, compression_ratio what it removes, prefix 512 or 1500; nll and ppl are absent where only sets were taken.
Rows that kvpress decides by the order of equal scores are left out: a budget within SnapKV's window, or within what LagKV protects.
kept.counts: kept tokens of KV head h of layer l at l * kv_heads + h, or one number if all are equal.
kept.fnv: base64 of one little-endian 64-bit number for each of them: h = 14695981039346656037, then for every kept position p, ascending,
    h = (h ^ p) * 1099511628211 modulo 2^64.
kept.bits: instead of fnv, base64 of a zlib stream behind its length in four big-endian bytes (Qt's qUncompress): a bit string in which
    position p of KV head h of layer l is bit i = (l * kv_heads + h) * prefix + p, found in byte i / 8 as bit i % 8 counted from the lowest.
decoding: kvpress's DecodingPress: prefill 512 untouched, then `steps` tokens one by one; every `interval` of them each head is cut to
    `budget`. nll of every token from the second on; kept at the end, with prefix + steps in place of prefix.
"""
import base64
import math
import struct
import zlib

import kvpress
import numpy
import torch
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import peer

WINDOW, SPLIT, WINDOWS = 1024, 512, 2
LONG = 1500
RATIOS = [0.1, 0.3, 0.5, 0.7, 0.9]
SCORED = {SPLIT: [0.3, 0.5, 0.7], LONG: [0.5]}  # ratios with a perplexity
LAYER_ENDS = 0.1, 0.7
CHUNK, SEED = 128, 42
DECODING = {"steps": 40, "interval": 16, "budget": 300}


def exactly(kept, of):
    """A ratio with which int() leaves just that many."""
    return 1 - (kept + 0.5) / of


def composed(ratio, tokens):
    """Both keep the same share; the counts are those of one budget for the pair."""
    kept, between = max(1, int(tokens * (1 - ratio))), int(tokens * (1 - ratio) ** 0.5)
    return kvpress.ComposedPress([kvpress.KnormPress(exactly(between, tokens)), kvpress.SnapKVPress(exactly(kept, between))])


def perLayer(layers):
    first, last = LAYER_ENDS
    return [first + layer / (layers - 1) * (last - first) for layer in range(layers)]


# spec: (press of a ratio and a number of tokens, ratios)
PRESSES = {
    "knorm": lambda c, t: kvpress.KnormPress(c),
    "snapkv": lambda c, t: kvpress.SnapKVPress(c),
    "streaming_llm:rope=original": lambda c, t: kvpress.StreamingLLMPress(c),
    "tova": lambda c, t: kvpress.TOVAPress(c),
    "observed_attention": lambda c, t: kvpress.ObservedAttentionPress(c),
    "keydiff": lambda c, t: kvpress.KeyDiffPress(c),
    "expected_attention": lambda c, t: kvpress.ExpectedAttentionPress(c),
    f"random:seed={SEED}": lambda c, t: kvpress.RandomPress(c, seed=SEED),
    "lagkv": lambda c, t: kvpress.LagKVPress(c),
    "pyramidkv": lambda c, t: kvpress.PyramidKVPress(c),
    "knorm:heads=ada": lambda c, t: kvpress.AdaKVPress(kvpress.KnormPress(c)),
    "snapkv:heads=ada": lambda c, t: kvpress.AdaKVPress(kvpress.SnapKVPress(c)),
    f"knorm:chunk={CHUNK}": lambda c, t: kvpress.ChunkPress(kvpress.KnormPress(c), chunk_length=CHUNK),
    f"keydiff:chunk={CHUNK}": lambda c, t: kvpress.ChunkPress(kvpress.KeyDiffPress(c), chunk_length=CHUNK),
    "compose:first=knorm,second=snapkv": composed,
    "snapkv:rope=cache_relative": lambda c, t: kvpress.KeyRerotationPress(kvpress.SnapKVPress(c)),
    "streaming_llm": lambda c, t: kvpress.KeyRerotationPress(kvpress.StreamingLLMPress(c)),
    "knorm:layers={}/{}".format(*LAYER_ENDS): lambda c, t: kvpress.PerLayerCompressionPress(kvpress.KnormPress(0.5), perLayer(30)),
}


def decidedByScores(spec, ratio, tokens):
    kept = int(tokens * (1 - ratio))
    if "snapkv" in spec or spec == "pyramidkv":
        return kept > 64
    if spec == "lagkv":
        lag, sinks = 128, 4
        return kept >= sinks + lag + (tokens - sinks) % lag
    return True


def ratiosOf(spec):
    return [sum(LAYER_ENDS) / 2] if "layers=" in spec else RATIOS


class GatherSpy:
    """Presses drop entries with Tensor.gather, keys first; this records the indices, one tensor [1, kv_heads, kept] per call."""

    def __enter__(self):
        self.indices, self.gather = [], torch.Tensor.gather
        spy = self

        def recorded(tensor, dim, index, *args, **kwargs):
            if dim == 2 and index.dim() == 4:
                spy.indices.append(index[..., 0])
            return spy.gather(tensor, dim, index, *args, **kwargs)

        torch.Tensor.gather = recorded
        return self

    def __exit__(self, *_):
        torch.Tensor.gather = self.gather

    def kept(self):
        """Of the keys and of the values alike; of several presses in a row, the first one's numbers."""
        out = None
        for index in self.indices[::2]:
            out = index if out is None else self.gather(out, 2, index)
        return out


def maskByLength(attention):
    """Layers may hold different numbers of entries; transformers makes one mask for all of them."""
    def run(module, query, key, value, attention_mask, **kwargs):
        new, held = query.shape[2], key.shape[2]
        if 1 < new < held:
            attention_mask = torch.ones(new, held, dtype=torch.bool).tril(held - new)[None, None]
        return attention(module, query, key, value, attention_mask, **kwargs)
    return run


class Prefill:
    """What the presses are handed: the states of every layer, once."""

    def __init__(self, model, ids):
        self.model, self.length, self.calls = model, len(ids), []
        record = lambda module, args, kwargs, output: self.calls.append((kwargs, output))
        hooks = [layer.self_attn.register_forward_hook(record, with_kwargs=True) for layer in model.model.layers]
        self.cache = DynamicCache()
        self.lastLogits = model(ids[None], past_key_values=self.cache, logits_to_keep=1).logits[0]
        for hook in hooks:
            hook.remove()

    def press(self, press):
        """The compressed cache, and the kept positions: one tensor [kv_heads, kept] or a list of tensors per layer."""
        cache, kept = DynamicCache(), []
        for i, layer in enumerate(self.cache.layers):
            cache.update(layer.keys.clone(), layer.values.clone(), i)
        for (kwargs, output), layer in zip(self.calls, self.model.model.layers):
            module = layer.self_attn
            module.rotary_emb, module.masked_key_indices = self.model.model.rotary_emb, None
            with GatherSpy() as spy:
                if press is not None:
                    press.forward_hook(module, [], {**kwargs, "past_key_values": cache}, output)
            heads = self.cache.layers[0].keys.shape[1]
            if module.masked_key_indices is not None:
                stays = torch.ones(heads, self.length, dtype=torch.bool)
                stays[module.masked_key_indices[1], module.masked_key_indices[2]] = False
                kept.append([row.nonzero()[:, 0] for row in stays])
            else:
                kept.append(list(spy.kept()[0].sort(-1).values) if spy.indices else [torch.arange(self.length)] * heads)
        return cache, kept


def packed(kept, length, whole):
    sets = [head.numpy().astype(numpy.int64) for layer in kept for head in layer]
    counts = [len(s) for s in sets]
    out = {"counts": counts if len(set(counts)) > 1 else counts[0]}
    if whole:
        bits = numpy.zeros((len(sets), length), dtype=numpy.uint8)
        for row, positions in zip(bits, sets):
            row[positions] = 1
        raw = numpy.packbits(bits.reshape(-1), bitorder="little").tobytes()
        out["bits"] = base64.b64encode(struct.pack(">I", len(raw)) + zlib.compress(raw, 9)).decode()
    else:
        hashes = []
        for positions in sets:
            h = 14695981039346656037
            for p in positions:
                h = ((h ^ int(p)) * 1099511628211) % 2**64
            hashes.append(h)
        out["fnv"] = base64.b64encode(struct.pack(f"<{len(hashes)}Q", *hashes)).decode()
    return out


def tailNll(prefill, cache, spec, tail):
    first = cache.get_seq_length() if "cache_relative" in spec or spec == "streaming_llm" else prefill.length
    logits = prefill.model(tail[None, :-1], past_key_values=cache, position_ids=torch.arange(first, first + len(tail) - 1)[None]).logits[0]
    return torch.nn.functional.cross_entropy(torch.cat([prefill.lastLogits, logits]).double(), tail).item()


@torch.no_grad()
def decoding(model, ids):
    press = kvpress.DecodingPress(kvpress.KnormPress(), compression_interval=DECODING["interval"], target_size=DECODING["budget"], hidden_states_buffer_size=0)
    cache, layers, heads = DynamicCache(), model.config.num_hidden_layers, model.config.num_key_value_heads
    held, losses = [torch.arange(SPLIT).repeat(1, heads, 1) for _ in range(layers)], []
    with press(model):
        model(ids[None, :SPLIT], past_key_values=cache, logits_to_keep=1)
        for p in range(SPLIT, SPLIT + DECODING["steps"]):
            with GatherSpy() as spy:
                logits = model(ids[None, p:p + 1], past_key_values=cache, position_ids=torch.tensor([[p]])).logits[0]
            losses.append(torch.nn.functional.cross_entropy(logits.double(), ids[p + 1:p + 2]).item())
            held = [torch.cat([h, torch.full((1, heads, 1), p)], 2) for h in held]
            if spy.indices:
                held = [h.gather(2, index) for h, index in zip(held, spy.indices[::2])]
    kept = [list(h[0].sort(-1).values) for h in held]
    return {"spec": f"knorm:timing=decode:{DECODING['interval']}", "prefix": SPLIT, **DECODING, "nll": losses,
            "kept": packed(kept, SPLIT + DECODING["steps"], True)}


@torch.no_grad()
def main():
    a = peer.arguments(__doc__, "kvpress.json")
    ids, model = peer.tokens(a.gguf), peer.load(a.gguf)
    ALL_ATTENTION_FUNCTIONS["sdpa"] = maskByLength(ALL_ATTENTION_FUNCTIONS["sdpa"])
    rows = []
    for prefix, starts in {SPLIT: [w * WINDOW for w in range(WINDOWS)], LONG: [0]}.items():
        windows = [(Prefill(model, ids[s:s + prefix]), ids[s + prefix:s + prefix + WINDOW - SPLIT]) for s in starts]
        model.set_attn_implementation("eager")
        eager = [Prefill(model, ids[s:s + prefix]) for s in starts]
        model.set_attn_implementation("sdpa")
        for spec, ratio in [("full", 0.0)] + [(s, r) for s in PRESSES for r in ratiosOf(s) if decidedByScores(s, r, prefix)]:
            press = PRESSES[spec](ratio, prefix) if spec != "full" else None
            row = {"spec": spec, "compression_ratio": ratio, "prefix": prefix}
            scored, losses = spec == "full" or "layers=" in spec or ratio in SCORED[prefix], []
            for w, (prefill, tail) in enumerate(windows):
                if w > 0 and not (scored and ratio in (0.0, 0.5)):
                    break
                cache, kept = (eager[w] if spec == "observed_attention" else prefill).press(press)
                if w == 0:
                    row["kept"] = packed(kept, prefix, ratio == 0.5 or spec == "lagkv")
                if scored:
                    losses.append(tailNll(prefill, cache, spec, tail))
            if scored:
                row["nll"] = sum(losses) / len(losses)
                row["ppl"], row["per_window"] = math.exp(row["nll"]), losses
                print(f"{prefix:5} {spec:34} {ratio:.1f}  nll {row['nll']:.6f}  ppl {row['ppl']:.4f}", flush=True)
            rows.append(row)
    peer.write(a.out, {
        "schema": "keepsight.golden.kvpress/2", "kvpress": "0.5.5", **peer.versions(), "window": WINDOW, "windows": WINDOWS, "suffix": WINDOW - SPLIT,
        "layers": model.config.num_hidden_layers, "kv_heads": model.config.num_key_value_heads, "query_heads": model.config.num_attention_heads,
        "ids": ids[:max(WINDOWS * WINDOW, LONG + WINDOW - SPLIT)].tolist(), "rows": rows, "decoding": decoding(model, ids)})


main()
