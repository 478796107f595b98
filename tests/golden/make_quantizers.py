"""golden/quantizers.json: plain references of the quantizers, written from their formulas on random keys and values.

    python tests/golden/make_quantizers.py

heads, tokens, dim: shape of x, [heads, tokens, dim] rounded to 3 decimals, one channel ten times as large; `decoded` tokens of it come one by
one after a prompt of the others. sample_keys, sample_values: [heads, sample, dim], what kvquant is calibrated on. cases: a quantizer, a side, and
what is read back after the last token. Scales and zeros are rounded to fp16 before codes are taken, in fp32, as the files of engine/cache say.
"""
import json
import pathlib

import numpy as np

HEADS, TOKENS, DECODED, DIM, SAMPLE = 2, 33, 9, 16, 40
F = np.float32


def half(x):
    return np.asarray(x, np.float16).astype(F)


def code(x, low, high, bits, least=0.0):
    """Min-max codes read back; low and high broadcast to x."""
    scale = half(np.maximum((high - low) / F(2**bits - 1), F(least)))
    zero = half(low)
    step = np.where(scale == 0, F(1), scale)
    c = np.clip(np.rint((x - zero) / step), 0, 2**bits - 1)
    return c * scale + zero


def kivi_keys(x, bits, group, residual):
    """x [N, D] of one head after prompt and decoding: whole blocks of `residual` tokens are packed, `group` tokens share a scale per channel."""
    out = x.copy()
    for first in range(0, len(x) // residual * residual, group):
        block = x[first:first + group]
        out[first:first + group] = code(block, block.min(0), block.max(0), bits)
    return out


def kivi_values(x, bits, group, residual):
    out = x.copy()
    for t in range(max(0, len(x) - residual)):
        for first in range(0, x.shape[1], group):
            row = x[t, first:first + group]
            out[t, first:first + group] = code(row, row.min(), row.max(), bits)
    return out


def hqq(x, bits, group, axis):
    """x [H, N, D]: the layout of HQQ's quantize with axis 0 or 1."""
    table = x.reshape(-1, group) if axis == 1 else x.reshape(group, -1)
    low, high = table.min(axis, keepdims=True), table.max(axis, keepdims=True)
    return code(table, low, high, bits, 1 / 20000).reshape(x.shape)


def hqq_run(x, bits, group, axis, residual, threshold=None):
    """The prompt is packed whole; then tokens gather, and at `residual` of them everything is packed again (axis 1: only they)."""
    def pack(part):
        if threshold is None:
            return hqq(part, bits, group, axis)
        large = np.abs(part) > threshold
        return np.where(large, half(part), hqq(np.where(large, F(0), part), bits, group, axis))

    prompt = x.shape[1] - DECODED
    held, tail = pack(x[:, :prompt]), x[:, :0]
    for t in range(prompt, x.shape[1]):
        tail = np.concatenate([tail, x[:, t:t + 1]], 1)
        if tail.shape[1] >= residual:
            held = np.concatenate([held, pack(tail)], 1) if axis == 1 else pack(np.concatenate([held, tail], 1))
            tail = tail[:, :0]
    return np.concatenate([held, tail], 1)


def kmeans(values, bits):
    centres = np.linspace(-1, 1, 2**bits)
    for _ in range(50):
        nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, values, side="left")
        moved = np.array([values[nearest == i].mean() if (nearest == i).any() else c for i, c in enumerate(centres)])
        if (moved == centres).all():
            break
        centres = moved
    return centres


def nearest_level(x, levels):
    return levels[np.abs(x[..., None] - levels).argmin(-1)].astype(F)


def span(low, high):
    return half((low + high) / 2), half((high - low) / 2)


def kvquant_keys(x, sample, bits, share):
    middle, width = span(np.quantile(sample, share / 2, axis=1, keepdims=True).astype(F), np.quantile(sample, 1 - share / 2, axis=1, keepdims=True).astype(F))
    inside = np.abs(sample - middle) <= width
    levels = kmeans(((sample - middle) / width)[inside].astype(np.float64), bits)
    coded = nearest_level((x - middle) / width, levels) * width + middle
    out = np.where(np.abs(x - middle) > width, half(x), coded)
    out[:, 0] = x[:, 0]
    return out


def kvquant_values(x, sample, bits, share):
    k = int(np.ceil(share / 2 * (x.shape[2] - 1)))

    def parts(v):
        order = np.argsort(v, -1, kind="stable")
        ordered = np.take_along_axis(v, order, -1)
        large = np.zeros(v.shape, bool)
        np.put_along_axis(large, np.concatenate([order[..., :k], order[..., v.shape[-1] - k:]], -1), True, -1)
        return large, *span(ordered[..., k:k + 1], ordered[..., -1 - k:v.shape[-1] - k])

    large, middle, width = parts(sample)
    levels = kmeans(((sample - middle) / width)[~large].astype(np.float64), bits)
    large, middle, width = parts(x)
    out = np.where(large, half(x), nearest_level((x - middle) / width, levels) * width + middle)
    out[:, 0] = x[:, 0]
    return out


def each(function, x, *args):
    return np.stack([function(head, *args) for head in x])


def main():
    random = np.random.default_rng(7)

    def draw(tokens):
        x = random.normal(size=(HEADS, tokens, DIM))
        x[..., 5] *= 10
        return x.round(3).astype(F)

    x, keys, values = draw(TOKENS), draw(SAMPLE), draw(SAMPLE)
    cases = []
    for bits in (2, 4):
        cases.append((f"kivi:bits={bits},group=8,residual=16", "keys", each(kivi_keys, x, bits, 8, 16)))
        cases.append((f"kivi:bits={bits},group=8,residual=16", "values", each(kivi_values, x, bits, 8, 16)))
    cases.append(("hqq_rtn:group=8,residual=4", "keys", hqq_run(x, 4, 8, 1, 4)))
    cases.append(("hqq_rtn:group=8,residual=4", "values", hqq_run(x, 4, 8, 0, 4)))
    cases.append(("outlier_rtn:group=8,residual=4,bits=8", "keys", hqq_run(x, 8, 8, 1, 4, 6.0)))
    cases.append(("kvquant:bits=3,outliers=0.1", "keys", kvquant_keys(x, keys, 3, 0.1)))
    cases.append(("kvquant:bits=3,outliers=0.1", "values", kvquant_values(x, values, 3, 0.1)))

    def numbers(a):
        return [float(f"{v:.5g}") for v in np.asarray(a, np.float64).ravel()]

    out = {"heads": HEADS, "tokens": TOKENS, "decoded": DECODED, "dim": DIM, "sample": SAMPLE, "x": numbers(x), "sample_keys": numbers(keys),
           "sample_values": numbers(values), "cases": [{"quantizer": q, "side": s, "read": numbers(r)} for q, s, r in cases]}
    path = pathlib.Path(__file__).parent / "quantizers.json"
    path.write_text(json.dumps(out, separators=(",", ":")) + "\n")
    print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
