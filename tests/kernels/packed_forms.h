// Keys or values in any form that a cache stores them in, with what they stand for: for the checks of ops::packed_attention.
#pragma once

#include "kernels/bind/ops.h"
#include "kernels/quant.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace keepsight::test {

struct PackedForm {
    int bits = 4, groups = 1, tokens = 1; // groups of a row, tokens that share them
    bool levels = false, ends = false;    // ends: groups of up to `tokens`
    double exact = 0;                     // share of the values that are exact
    int rowExact = 0;                     // exact values of each code
    int across = 0;                       // values that share scale and zero, of all heads
    at::ScalarType exactType = at::kHalf;
};

struct MadeSide {
    ops::PackedSide side;
    at::Tensor dense; // [Hkv, C, D] fp32, NaN behind a head's last entry
};

// A tensor that is part of a greater one, as the cache has them: heads lie apart.
inline at::Tensor withRoom(const at::Tensor& t) {
    std::vector<int64_t> sizes = t.sizes().vec();
    sizes[1] += 4;
    const at::Tensor room = at::zeros(sizes, t.options());
    room.narrow(1, 0, t.size(1)).copy_(t);
    return room.narrow(1, 0, t.size(1));
}

// Of head h the first `first` + h entries and the last `tail` + 2h ones are exact. What lies behind the counts is rubbish. By at::manual_seed().
inline MadeSide makePackedSide(const std::vector<int64_t>& lengths, int64_t dim, const PackedForm& form, int64_t first, int64_t tail, at::ScalarType type) {
    const auto heads = static_cast<int64_t>(lengths.size()), levels = int64_t{1} << form.bits;
    MadeSide made;
    ops::PackedSide& s = made.side;
    s.bits = form.bits;
    at::Tensor counts = at::zeros({3, heads}, at::kInt);
    std::vector<int64_t> coded, before;
    int64_t all = 0, most[3] = {};
    for (int64_t h = 0; h < heads; ++h) {
        const int64_t n = lengths[static_cast<std::size_t>(h)], f = std::min(first ? first + h : 0, n), t = std::min(tail ? tail + 2 * h : 0, n - f);
        const int64_t split[] = {f, n - f - t, t};
        for (int part = 0; part < 3; ++part) counts[part][h].fill_(split[part]), most[part] = std::max(most[part], split[part]);
        before.push_back(all), coded.push_back(split[1]), all += split[1];
    }
    s.counts = counts;
    const at::Tensor begin = at::randn({heads, most[0] + 1, dim}).to(type), end = at::randn({heads, most[2] + 1, dim}).to(type);
    if (form.levels) s.levels = at::randn({levels});
    const auto numbers = [&](const at::Tensor& codes) { return form.levels ? s.levels.index_select(0, codes.flatten().to(at::kLong)).view(codes.sizes()) : codes.to(at::kFloat); };
    const auto halves = [](at::IntArrayRef sizes, double by) { return (at::rand(sizes) * by).to(at::kHalf); };
    const double step = form.levels ? 1.0 : 2.0 / static_cast<double>(levels);
    at::Tensor decoded = at::zeros({heads, most[1] + 1, dim});
    if (form.across && all > 0) {
        s.across = true;
        const int64_t width = (all * dim + form.across - 1) / form.across, room = width % 4 == 0 ? width / 32 * 32 + 64 : width + width % 3; // in whole words, too
        const at::Tensor codes = at::randint(0, levels, {1, form.across, room}).to(at::kByte);
        s.codes = ops::pack_codes(codes, form.bits), s.scale = halves({1, 1, room}, step), s.zero = at::randn({1, 1, room}).to(at::kHalf);
        const at::Tensor flat = (numbers(codes) * s.scale.to(at::kFloat) + s.zero.to(at::kFloat)).narrow(2, 0, width).flatten();
        s.scale.narrow(2, width, room - width).fill_(NAN), s.zero.narrow(2, width, room - width).fill_(NAN);
        for (int64_t h = 0; h < heads; ++h) {
            const auto i = static_cast<std::size_t>(h);
            decoded[h].narrow(0, 0, coded[i]).copy_(flat.narrow(0, before[i] * dim, coded[i] * dim).view({coded[i], dim}));
        }
    } else if (most[1] > 0) {
        const at::Tensor codes = at::randint(0, levels, {heads, most[1] + 1, dim}).to(at::kByte);
        at::Tensor row = at::zeros({heads, most[1] + 1}, at::kLong);
        std::vector<int64_t> used;
        int64_t rows = 0;
        s.ends = at::full({heads, most[1] + 2}, std::numeric_limits<int32_t>::max(), at::kInt);
        for (int64_t h = 0; h < heads; ++h) {
            int64_t group = 0, from = 0;
            for (const int64_t n = coded[static_cast<std::size_t>(h)]; from < n; ++group) {
                const int64_t size = std::min(form.ends ? 1 + at::randint(form.tokens, {1}).item<int64_t>() : int64_t{form.tokens}, n - from);
                row[h].narrow(0, from, size).fill_(group), from += size;
                s.ends[h][group].fill_(from);
            }
            used.push_back(group), rows = std::max(rows, group);
        }
        s.scale = halves({heads, rows + 2, form.groups}, step), s.zero = at::randn({heads, rows + 2, form.groups}).to(at::kHalf);
        const auto each = [&](const at::Tensor& t) {
            return t.to(at::kFloat).gather(1, row.unsqueeze(-1).expand({heads, most[1] + 1, form.groups})).repeat_interleave(dim / form.groups, 2);
        };
        decoded = numbers(codes) * each(s.scale) + each(s.zero);
        for (int64_t h = 0; h < heads; ++h) s.scale[h].slice(0, used[static_cast<std::size_t>(h)]).fill_(NAN), s.zero[h].slice(0, used[static_cast<std::size_t>(h)]).fill_(NAN);
        s.codes = withRoom(ops::pack_codes(codes, form.bits)), s.scale = withRoom(s.scale), s.zero = withRoom(s.zero);
        s.ends = form.ends ? withRoom(s.ends.narrow(1, 0, rows + 2)) : at::Tensor();
        s.groupTokens = form.tokens;
    }
    if (form.exact > 0 && most[1] > 0) {
        std::vector<at::Tensor> found;
        int64_t room = 1;
        for (int64_t h = 0; h < heads; ++h) {
            found.push_back((at::rand({coded[static_cast<std::size_t>(h)] * dim}) < form.exact).nonzero().flatten());
            room = std::max(room, found.back().numel() + 3);
        }
        s.exact = at::full({heads, room}, NAN, form.exactType), s.places = at::randint(-5, std::numeric_limits<int32_t>::max(), {heads, room}).to(at::kInt);
        s.exactCounts = at::zeros({heads}, at::kInt);
        for (int64_t h = 0; h < heads; ++h) {
            const at::Tensor& places = found[static_cast<std::size_t>(h)];
            const at::Tensor values = (at::randn({places.numel()}) * 4).to(form.exactType);
            s.exact[h].narrow(0, 0, places.numel()).copy_(values), s.places[h].narrow(0, 0, places.numel()).copy_(places), s.exactCounts[h].fill_(places.numel());
            decoded[h].flatten().index_copy_(0, places, values.to(at::kFloat));
        }
        s.exact = withRoom(s.exact), s.places = withRoom(s.places);
    }
    if (form.rowExact > 0 && most[1] > 0) {
        const at::Tensor channels = std::get<1>(at::rand({heads, most[1] + 1, dim}).topk(form.rowExact)), values = (at::randn(channels.sizes()) * 4).to(form.exactType);
        decoded.scatter_(2, channels, values.to(at::kFloat));
        s.rowExact = withRoom(values), s.rowChannels = withRoom(channels.to(dim == 80 ? at::kShort : at::kByte));
    }
    made.dense = at::full({heads, *std::max_element(lengths.begin(), lengths.end()) + 5, dim}, NAN);
    for (int64_t h = 0; h < heads; ++h) {
        int64_t at = 0, part = 0;
        for (const at::Tensor& rows : {begin.to(at::kFloat), decoded, end.to(at::kFloat)}) {
            const int64_t n = counts[part++][h].item<int>();
            made.dense[h].narrow(0, at, n).copy_(rows[h].narrow(0, 0, n)), at += n;
        }
        begin[h].slice(0, counts[0][h].item<int>()).fill_(NAN), end[h].slice(0, counts[2][h].item<int>()).fill_(NAN); // must never be read
    }
    if (most[0]) s.first = withRoom(begin);
    if (most[2]) s.tail = withRoom(end);
    return made;
}

// Rows of dense [Hkv, C, D] turned as RoPE turns them, angles in fp32; positions [Hkv, C] or [C].
inline at::Tensor turnedKeys(const at::Tensor& dense, const at::Tensor& positions, const at::Tensor& inverseFrequencies) {
    const at::Tensor angles = (positions.to(at::kFloat).unsqueeze(-1) * inverseFrequencies).to(at::kDouble), cosine = angles.cos(), sine = angles.sin();
    const int64_t half = dense.size(2) / 2;
    const at::Tensor low = dense.narrow(2, 0, half).to(at::kDouble), high = dense.narrow(2, half, half).to(at::kDouble);
    return at::cat({low * cosine - high * sine, high * cosine + low * sine}, 2).to(at::kFloat);
}

} // namespace keepsight::test
