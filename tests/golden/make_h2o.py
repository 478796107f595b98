"""golden/h2o.json: a plain reference of H2O on the default model, fp32, for the first 217 tokens of harbour.txt.

    python tests/golden/make_h2o.py --gguf build/models/SmolLM2-135M-Instruct.Q4_1.gguf

Prefill of 200 tokens with materialised attention; acc[kv head, column] = mean over the group's query heads of the column sums over all
rows. B = floor(seen / 2) tokens are kept per KV head: the last floor(B / 2), and of the older ones those with the largest acc (equal: the
larger position). Evicted at prefill end, then after each of 16 teacher-forced steps: step i feeds token 200 + i at its original position,
attends to the kept tokens and itself, adds its row to acc, and the cache shrinks to floor((201 + i) / 2). Evicted columns are gone.
kept: per layer and KV head the ascending positions; nll[i]: loss of token 201 + i after step i; prefill_nll: loss of token 200.
smallest_gap: over all evictions, (worst kept heavy - best dropped) / worst kept heavy; sets are safe to compare well above float noise only.
"""
import math

import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import peer

PREFIX, STEPS, RATIO = 200, 16, 0.5


class Head:
    """What one KV head still holds."""

    def __init__(self, keys, values, acc):
        self.keys, self.values, self.acc = keys, values, acc  # [N, D], [N, D], [N]
        self.positions = torch.arange(len(acc))               # [N], ascending

    def evict(self, budget):
        """Returns the relative gap between the last kept and the first dropped heavy hitter."""
        held = len(self.positions)
        if held <= budget:
            return math.inf
        recent = budget // 2
        older = range(held - recent)
        order = sorted(older, key=lambda i: (self.acc[i].item(), i), reverse=True)
        heavy = budget - recent
        gap = (self.acc[order[heavy - 1]] - self.acc[order[heavy]]) / self.acc[order[heavy - 1]]
        keep = torch.tensor(sorted(order[:heavy]) + list(range(held - recent, held)))
        self.keys, self.values, self.acc, self.positions = self.keys[keep], self.values[keep], self.acc[keep], self.positions[keep]
        return gap.item()


class Reference:
    def __init__(self, model):
        self.model, config = model.model, model.config
        self.lmHead, self.scale = model.lm_head, config.head_dim**-0.5
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self.headDim = config.head_dim
        self.layers = None  # per layer a list of Head
        self.gap = math.inf

    def forward(self, ids, first, attend):
        x = self.model.embed_tokens(ids[None])
        rotation = self.model.rotary_emb(x, torch.arange(first, first + len(ids))[None])
        for index, layer in enumerate(self.model.layers):
            h = layer.input_layernorm(x)
            shape = (1, len(ids), -1, self.headDim)
            q, k, v = (p(h).view(shape).transpose(1, 2) for p in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj))
            q, k = apply_rotary_pos_emb(q, k, *rotation)
            out = attend(index, q[0], k[0], v[0])  # [query_heads, S, D]
            x = x + layer.self_attn.o_proj(out.transpose(0, 1).reshape(1, len(ids), -1))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.lmHead(self.model.norm(x))[0]

    def prefill(self, ids):
        self.layers = []

        def attend(_, q, k, v):
            out, heads = [], []
            for head in range(k.shape[0]):
                group = q[head * self.groups:(head + 1) * self.groups]
                scores = group @ k[head].T * self.scale
                scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
                rows = scores.softmax(-1)  # [groups, S, S]
                out.append(rows @ v[head])
                heads.append(Head(k[head], v[head], rows.sum(1).mean(0)))
            self.layers.append(heads)
            return torch.cat(out)

        return self.forward(ids, 0, attend)

    def step(self, token, position):
        def attend(index, q, k, v):
            out = []
            for number, head in enumerate(self.layers[index]):
                head.keys = torch.cat([head.keys, k[number]])
                head.values = torch.cat([head.values, v[number]])
                head.positions = torch.cat([head.positions, torch.tensor([position])])
                rows = (q[number * self.groups:(number + 1) * self.groups] @ head.keys.T * self.scale).softmax(-1)  # [groups, 1, N]
                head.acc = torch.cat([head.acc, torch.zeros(1)]) + rows[:, 0].mean(0)
                out.append(rows @ head.values)
            return torch.cat(out)

        return self.forward(token[None], position, attend)[-1]

    def evict(self, budget):
        for heads in self.layers:
            for head in heads:
                self.gap = min(self.gap, head.evict(budget))

    def kept(self):
        return [[head.positions.tolist() for head in heads] for heads in self.layers]


def loss(logits, token):
    return torch.nn.functional.cross_entropy(logits[None].double(), token[None]).item()


@torch.no_grad()
def main():
    a = peer.arguments(__doc__, "h2o.json")
    ids = peer.tokens(a.gguf)[:PREFIX + STEPS + 1]
    model = peer.load(a.gguf)
    full = model(ids[None]).logits[0]

    plain = Reference(model)  # without eviction the reference must be the model itself
    worst = (plain.prefill(ids[:PREFIX]) - full[:PREFIX]).abs().max().item()
    for i in range(STEPS):
        worst = max(worst, (plain.step(ids[PREFIX + i], PREFIX + i) - full[PREFIX + i]).abs().max().item())
    for heads in plain.layers:
        for head in heads:
            assert abs(head.acc.sum().item() - (PREFIX + STEPS)) < 1e-2
    assert worst < 1e-3, worst

    reference = Reference(model)
    prefillNll = loss(reference.prefill(ids[:PREFIX])[-1], ids[PREFIX])
    reference.evict(math.floor(PREFIX * RATIO))
    afterPrefill, nll = reference.kept(), []
    for i in range(STEPS):
        nll.append(loss(reference.step(ids[PREFIX + i], PREFIX + i), ids[PREFIX + i + 1]))
        reference.evict(math.floor((PREFIX + i + 1) * RATIO))
    print("without eviction: largest logit difference to transformers", worst, "; mean step nll", sum(nll) / STEPS,
          "; full cache", sum(loss(full[PREFIX + i], ids[PREFIX + i + 1]) for i in range(STEPS)) / STEPS)
    peer.write(a.out, {
        "schema": "keepsight.golden.h2o/1", **peer.versions(), "ids": ids.tolist(), "prefix": PREFIX, "compression_ratio": RATIO,
        "kept_after_prefill": afterPrefill, "kept_at_end": reference.kept(), "prefill_nll": prefillNll, "nll": nll,
        "smallest_gap": reference.gap})


main()
