"""golden/policies_reference.json: what plain references of attn, tskip, observed_attention and the kvc family keep, in fp64.

    python tests/golden/make_policies_reference.py        (numpy only)

Written from the definitions, not from the engine: explicit rows, explicit differences v - o, one head at a time. Queries, keys and values are random,
made from integers so that both sides have the same numbers: stream(seed) is SplitMix64, four outputs make one nearly normal value (the sum of
their highest 24 bits as fractions, minus 2, times sqrt 3, rounded to fp32). Layer l of a case uses the seeds 1000 case + 10 l + (0 queries, 1 keys,
2 values); queries are doubled, so that attention is uneven. Each has prompt + steps rows per head; nothing depends on what was kept before.

policy, ratio or tokens: as typed, and the budget. kept: after the prefill, per layer and KV head, ascending positions as ranges. evicted[i]: per
layer and KV head the positions dropped after the i-th decoded token. smallest_gap: relative distance between the last that won and the first
that lost, over all selections (equal scores apart, where the larger position wins); cases are reseeded until it is above fp32 noise.
"""
import argparse
import json
import math
import os
import pathlib

import numpy as np

LAYERS, QUERY_HEADS, KV_HEADS, PROMPT, STEPS, DIM = 4, 8, 2, 300, 24, 32
GROUP, TOTAL, LEAST_GAP = QUERY_HEADS // KV_HEADS, PROMPT + STEPS, 3e-5
WORD = (1 << 64) - 1


def mix(x):
    x = (x + 0x9E3779B97F4A7C15) & WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


def normal(seed, shape):
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, 4 * math.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    u = (z >> np.uint64(40)).astype(np.float64) / (1 << 24)
    return ((u.reshape(-1, 4).sum(1) - 2) * math.sqrt(3.0)).astype(np.float32).reshape(shape)


class Layer:
    def __init__(self, case, layer):
        self.number = layer
        seed = 1000 * case + 10 * layer
        self.q = 2.0 * normal(seed, (QUERY_HEADS, TOTAL, DIM)).astype(np.float64)
        self.k = normal(seed + 1, (KV_HEADS, TOTAL, DIM)).astype(np.float64)
        self.v = normal(seed + 2, (KV_HEADS, TOTAL, DIM)).astype(np.float64)
        self.held = [np.arange(PROMPT) for _ in range(KV_HEADS)]

    def row(self, head, position):
        """Weights and logits of one query over what its KV head holds of positions up to its own: a, s, values, positions."""
        kv = head // GROUP
        at = self.held[kv][self.held[kv] <= position]
        s = self.k[kv, at] @ self.q[head, position] / math.sqrt(DIM)
        a = np.exp(s - s.max())
        return a / a.sum(), s, self.v[kv, at], at

    def statistic(self, kind, positions):
        """[query heads, TOTAL]: the statistic of `kind` summed over the queries at `positions`."""
        out = np.zeros((QUERY_HEADS, TOTAL))
        for head in range(QUERY_HEADS):
            for position in positions:
                a, s, v, at = self.row(head, position)
                o = a @ v
                byValue, byKey = a[:, None] * v, (a * s)[:, None] * (v - o)
                if kind == "attention":
                    change = a
                elif kind == "V":
                    change = (byValue**2).sum(1)
                elif kind == "K":
                    change = (byKey**2).sum(1)
                elif kind == "VK":
                    change = ((byValue + byKey) ** 2).sum(1)
                elif kind == "VK_no_cross":
                    change = (byValue**2).sum(1) + (byKey**2).sum(1)
                out[head, at] += change
        return out


class Gap:
    def __init__(self):
        self.smallest = math.inf

    def note(self, won, lost):
        if won != lost:
            self.smallest = min(self.smallest, abs(won - lost) / max(abs(won), abs(lost)))


def best(scores, candidates, count, gap):
    """The `count` candidates (positions) of highest score; equal: the larger position."""
    if count <= 0:
        return []
    order = sorted(candidates, key=lambda p: (scores[p], p), reverse=True)
    if count < len(order):
        gap.note(scores[order[count - 1]], scores[order[count]])
    return order[:count]


def keep(held, scores, first, recent, count, gap):
    """The first and the recent ones and the best of the rest, `count` in all."""
    if len(held) <= count:
        return held
    first = held[:first]
    newest = held[len(held) - recent:] if recent else held[:0]
    rest = held[len(first):len(held) - recent]
    chosen = best(scores, rest.tolist(), count - len(first) - len(newest), gap)
    return np.array(sorted([*first.tolist(), *chosen, *newest.tolist()]))


def halfEven(x):
    return int(np.round(x))  # numpy rounds half to even


def fraction(layer, start, end):
    return start + (end - start) * layer / (LAYERS - 1)


def budget(case, seen):
    return case["tokens"] if "tokens" in case else int(seen * (1.0 - case["ratio"]))


def reduced(statistic, kv, agg):
    group = statistic[kv * GROUP:(kv + 1) * GROUP]
    return {"mean": group.mean(0), "max": group.max(0), "sum": group.sum(0)}[agg]


class Evicting:
    """Policies that score what is held; subclasses say which sums, which scores, how many."""
    eachStep, afterPrefill, kind, promptRows, decodeRows = True, True, "attention", range(PROMPT), True

    def __init__(self, case, params):
        self.case, self.params = case, params
        self.agg = params.get("agg", "mean")

    def begin(self, layer):
        layer.sums = layer.statistic(self.kind, self.promptRows)

    def step(self, layer, position):
        layer.sums += layer.statistic(self.kind, [position])

    def scores(self, layer, kv, seen):
        return reduced(layer.sums, kv, self.agg)

    def choose(self, layer, seen, gap):
        for kv in range(KV_HEADS):
            first, recent, count = self.sizes(layer, seen, len(layer.held[kv]))
            layer.held[kv] = keep(layer.held[kv], self.scores(layer, kv, seen), first, recent, count, gap)


class Attn(Evicting):
    def __init__(self, case, params):
        super().__init__(case, params)
        self.start, self.end = float(params.get("start", 0)), float(params.get("end", 0))
        self.anchors = int(params.get("anchors", 8))
        self.eachStep = params.get("timing", "each_step") == "each_step"
        self.shared = params.get("shared_heads") == "on"

    def target(self, layer, seen):
        if self.start:
            return fraction(layer.number, self.start, self.end) * seen
        mean = budget(self.case, seen)
        slope = min(0.2 * mean, seen - mean)
        return mean + slope * (1 - 2 * layer.number / (LAYERS - 1))

    def sizes(self, layer, seen, held):
        return self.anchors, 1, max(self.anchors + 1, halfEven(self.target(layer, seen)))

    def scores(self, layer, kv, seen):
        return layer.sums.mean(0) if self.shared else super().scores(layer, kv, seen)


class AttnSeed(Attn):
    afterPrefill = False

    def begin(self, layer):
        layer.sums = np.zeros((QUERY_HEADS, TOTAL))

    def step(self, layer, position):
        layer.sums = layer.statistic("attention", [position])

    def scores(self, layer, kv, seen):
        return layer.sums.mean(0)

    def sizes(self, layer, seen, held):
        return self.anchors, 0, max(self.anchors, halfEven(fraction(layer.number, self.start, self.end) * held))


class ObservedAttention(Evicting):
    def __init__(self, case, params):
        super().__init__(case, params)
        self.eachStep = params.get("timing") == "each_step"

    def scores(self, layer, kv, seen):
        return reduced(layer.sums, kv, self.agg) / np.maximum(1, seen - np.arange(TOTAL))

    def sizes(self, layer, seen, held):
        return 0, 0, budget(self.case, seen)


class Kvc(Evicting):
    def __init__(self, case, params, name):
        super().__init__(case, params)
        self.eachStep = params.get("decode_evict", "on") == "on"
        self.full = name.endswith("_fullhist")
        name, _, suffix = name.removesuffix("_fullhist").partition("+")
        self.suffix, self.onNorm = suffix, name == "V_p1"
        self.kind = "attention" if self.onNorm else name
        recent = self.counts(PROMPT)[0]
        self.promptRows = range(PROMPT) if self.full else [PROMPT - 1] if suffix == "tova" else range(PROMPT - recent, PROMPT)

    def counts(self, seen):  # ratios are of the prompt, for good
        p = self.params
        ratio = float(p.get("cache_ratio", 0))
        if p.get("fix_recent") == "on":
            recent = int(p["num_recent"])
            return recent, math.floor(PROMPT * ratio) - recent
        if ratio:
            return math.floor(PROMPT * (0.05 * ratio)), math.floor(PROMPT * (0.95 * ratio))
        if "num_recent" in p:
            return int(p["num_recent"]), int(p["num_heavy"])
        if "recent_ratio" in p:
            return math.floor(PROMPT * float(p["recent_ratio"])), math.floor(PROMPT * float(p["heavy_ratio"]))
        b = budget(self.case, seen)
        return max(1, b * 5 // 100), b - max(1, b * 5 // 100)

    def sizes(self, layer, seen, held):
        recent, heavy = self.counts(seen)
        return 0, 0 if self.suffix == "tova" else recent, recent + heavy

    def step(self, layer, position):
        change = layer.statistic(self.kind, [position])
        layer.sums = change if self.suffix == "tova" else layer.sums + change

    def scores(self, layer, kv, seen):
        scores = reduced(layer.sums, kv, self.agg)
        if self.onNorm:
            scores = scores * np.abs(layer.v[kv]).sum(1)
        if self.suffix not in ("maxpool", "avgpool"):
            return scores
        held, pad = layer.held[kv], 3
        candidates = held[:len(held) - self.counts(seen)[0]]
        out = np.zeros(TOTAL)
        for i, position in enumerate(candidates):
            near = scores[candidates[max(0, i - pad):i + pad + 1]]
            out[position] = near.max() if self.suffix == "maxpool" else near.sum() / 7
        return out


class TSkip:
    """Stores or not, once and for all; one set for all heads."""
    eachStep, afterPrefill = True, True

    def __init__(self, case, params):
        self.start = float(params.get("start", 0)) or 1.0 - case["ratio"]
        self.end = float(params.get("end", 0)) or 1.0 - case["ratio"]
        self.anchors, self.size = int(params.get("anchors", 8)), int(params.get("reservoir", 64))
        self.sign = -1 if params.get("norm") == "low" else 1
        self.seed = int(params.get("seed", 0))

    def begin(self, layer):
        layer.f = fraction(layer.number, self.start, self.end)
        layer.norm = self.sign * np.sqrt((layer.k**2).sum(2)).mean(0)
        layer.stored, layer.items, layer.reservoir, layer.new = 0, 0, [], list(range(PROMPT))

    def step(self, layer, position):
        layer.new = [position]

    def feed(self, layer, norm):
        layer.items += 1
        if len(layer.reservoir) < self.size:
            layer.reservoir.append(norm)
            return
        slot = mix((mix((mix(self.seed) + layer.number) & WORD) + layer.items) & WORD) % layer.items
        if slot < self.size:
            layer.reservoir[slot] = norm

    def choose(self, layer, seen, gap):
        anchors = [p for p in layer.new if p < self.anchors]
        rest = [p for p in layer.new if p >= self.anchors]
        if len(layer.new) > 1:
            taken = best(layer.norm, rest, max(0, halfEven(layer.f * len(layer.new)) - len(anchors)), gap)
        else:
            taken, p = [], layer.new[0]
            if rest and layer.stored < halfEven(layer.f * (seen - self.anchors)):
                threshold = -math.inf if layer.items < 32 else sorted(layer.reservoir)[math.floor((1 - layer.f) * (len(layer.reservoir) - 1))]
                gap.note(layer.norm[p], threshold)
                taken = rest if layer.norm[p] >= threshold else []
        layer.stored += len(taken)
        for p in layer.new:
            self.feed(layer, layer.norm[p])
        gone = set(layer.new) - set(anchors) - set(taken)
        for kv in range(KV_HEADS):
            layer.held[kv] = np.array([p for p in layer.held[kv].tolist() if p not in gone])


def referenceOf(case):
    name, _, text = case["policy"].partition(":")
    params = dict(pair.split("=") for pair in text.split(",") if pair)
    if name == "attn":
        return (AttnSeed if params.get("form") == "seed" else Attn)(case, params)
    if name == "tskip":
        return TSkip(case, params)
    return ObservedAttention(case, params) if name == "observed_attention" else Kvc(case, params, name.removeprefix("kvc"))


def ranges(positions):
    """[0, 1, 2, 5] as '0-2 5'."""
    out = []
    for p in positions:
        if out and out[-1][1] == p - 1:
            out[-1][1] = p
        else:
            out.append([p, p])
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in out)


def run(case, seed):
    gap, reference = Gap(), referenceOf(case)
    layers = [Layer(seed, l) for l in range(LAYERS)]
    for layer in layers:
        reference.begin(layer)
        if reference.afterPrefill:
            reference.choose(layer, PROMPT, gap)
    kept = [[ranges(held.tolist()) for held in layer.held] for layer in layers]
    evicted = []
    for position in range(PROMPT, TOTAL):
        evicted.append([])
        for layer in layers:
            layer.held = [np.append(held, position) for held in layer.held]
            before = [set(held.tolist()) for held in layer.held]
            if reference.eachStep:
                reference.step(layer, position)
                reference.choose(layer, position + 1, gap)
            evicted[-1].append([ranges(sorted(b - set(held.tolist()))) for b, held in zip(before, layer.held)])
        if gap.smallest < LEAST_GAP:
            return None
    return {**case, "seed": seed, "kept": kept, "evicted": evicted, "smallest_gap": gap.smallest}


def cases():
    yield {"policy": "attn", "ratio": 0.6}
    yield {"policy": "attn:start=0.75,end=0.5", "ratio": 0.0}
    yield {"policy": "attn:shared_heads=on", "tokens": 80}
    yield {"policy": "attn:agg=max,anchors=4,timing=prefill_end", "ratio": 0.7}
    yield {"policy": "attn:end=0.8,form=seed,start=0.9", "ratio": 0.0}
    yield {"policy": "tskip", "ratio": 0.5}
    yield {"policy": "tskip:end=0.5,start=0.75", "ratio": 0.0}
    yield {"policy": "tskip:anchors=2,norm=low,reservoir=16,seed=5", "ratio": 0.25}
    yield {"policy": "observed_attention", "ratio": 0.5}
    yield {"policy": "observed_attention:timing=each_step", "tokens": 60}
    for base in ("V", "K", "VK", "VK_no_cross", "V_p1"):
        for suffix in ("", "+tova", "+maxpool", "+avgpool", "_fullhist"):
            yield {"policy": f"kvc{base}{suffix}:num_heavy=30,num_recent=10", "ratio": 0.0}
    yield {"policy": "kvcVK", "ratio": 0.8}
    yield {"policy": "kvcK:agg=max,cache_ratio=0.2,decode_evict=off", "ratio": 0.0}
    yield {"policy": "kvcV:cache_ratio=0.1,decode_evict=off,fix_recent=on,num_recent=16", "ratio": 0.0}
    yield {"policy": "kvcVK+maxpool:heavy_ratio=0.1,recent_ratio=0.05", "ratio": 0.0}
    yield {"policy": "kvcVK:cache_ratio=0.23", "ratio": 0.0}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(pathlib.Path(__file__).parent / "policies_reference.json"))
    out, done = parser.parse_args().out, []
    for number, case in enumerate(cases()):
        found = None
        for attempt in range(20):
            if found := run(case, 100 * (number + 1) + attempt):
                break
        assert found, case
        print(case, "seed", found["seed"], "gap", found["smallest_gap"], flush=True)
        done.append(found)
    data = {"schema": "keepsight.golden.policies_reference/1", "layers": LAYERS, "query_heads": QUERY_HEADS, "kv_heads": KV_HEADS, "prompt": PROMPT,
            "steps": STEPS, "dim": DIM, "cases": done}
    pathlib.Path(out).write_text(json.dumps(data, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{out}: {os.path.getsize(out)} bytes")


main()
