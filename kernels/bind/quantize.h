// Codes of values in groups that share a scale and a zero: c = round((x − zero) / scale), x̃ = c · scale + zero.
//
// Scale and zero are rounded to fp16 first and codes are found with the rounded ones, so that |x̃ − x| ≤ scale/2 holds for what is stored;
// only where rounding moved the range inward can the outermost code be further off, by that rounding. The zero is the group's least value
// itself, not a code number as in HQQ: the same line, but −min/scale overflows fp16 when a group is nearly constant.
#pragma once

#include <ATen/core/Tensor.h>
#include <optional>

namespace keepsight::ops {

struct Affine {
    at::Tensor scale, zero; // fp16
};
// From the least and greatest values of groups; leastScale: no finer than that.
Affine affine(const at::Tensor& low, const at::Tensor& high, int bits, double leastScale);
// Codes of x, uint8; scale and zero as x or broadcast to it.
at::Tensor codes(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero, int bits);
at::Tensor exact(const at::Tensor& x, at::ScalarType type); // rounded to a 16-bit type, never to infinity

struct PackedRows {
    at::Tensor codes, scale, zero; // [H, S, packedBytes(D)] as pack_codes makes them; [H, S, D / group] fp16
};
// Rows packed by groups of neighbouring channels. x [H, S, D] fp32; the group divides D.
PackedRows pack_groups(const at::Tensor& x, int64_t bits, int64_t group, double leastScale);

// Codes of each head with scale and zero of groups of consecutive entries, channel by channel.
struct ChannelCodes {
    at::Tensor codes, scale, zero; // [H, C, packedBytes(D)] uint8; [H, R, D] fp16
    at::Tensor ends;               // [H, R] int32, the entry before which a group ends; undefined: not wanted
    at::Tensor lengths, groups;    // [H] int32, codes and groups so far; the caller counts what comes
    int64_t bits = 4, group = 32;  // entries of a group
    double leastScale = 0;
};
// Packs the first counts[h] rows (without counts: all; whole groups) of x [H, S, D] fp32 behind them. There must be room: devices do not
// look.
void append_channels(ChannelCodes& to, const at::Tensor& x, const std::optional<at::Tensor>& counts);

// All heads' codes as one array that holds lengths [H] int32 entries of D values (PackedSide::across), g rows of C columns, of which g
// divides D.
struct AcrossCodes {
    at::Tensor codes, scale, zero; // [1, g, packedBytes(C)] uint8; [1, 1, C] fp16
    at::Tensor lengths;
    int64_t bits = 4, dim = 0;
    double leastScale = 0;
};
// All `held` entries as numbers, [held, D] fp32, those of the heads behind each other.
at::Tensor decodedEntries(const AcrossCodes& across, int64_t held);
// Has entries gone[h, :] of each head go, [H, n] int32 ascending behind those below 0, which are none (as are those behind its length), and
// the first counts[h] rows (without counts: all) of x [H, S, D] fp32 come behind the rest; in place. Where anything goes or comes all
// values are decoded and make groups anew. There must be room: devices do not look.
void repack_across(AcrossCodes& across, const std::optional<at::Tensor>& gone, const std::optional<at::Tensor>& x,
                   const std::optional<at::Tensor>& counts);
// The same beside it, in no more columns than are in use then; nullopt: nothing goes or comes. ATen calls that read the counts on the host.
std::optional<AcrossCodes> repacked_across(const AcrossCodes& across, const std::optional<at::Tensor>& gone,
                                           const std::optional<at::Tensor>& x, const std::optional<at::Tensor>& counts);

// Values that are exact beside codes (PackedSide::exact), in the order of their places, entry · D + channel.
struct BesideValues {
    at::Tensor places, values; // [H, M] int32 and of a 16-bit type; the last of a row is nobody's
    at::Tensor counts;         // [H] int32
};
// Puts the outliers among the first added[h] rows (without `added`: all) of x [H, S, D] fp32 behind them; outliers [H, S, D] bool (without: |x| > threshold), lengths
// [H] int32 the entries before these rows. There must be room: devices do not look. Returns x with 0 in their place; behind the rows that are added it may hold anything.
at::Tensor add_beside(BesideValues& to, const at::Tensor& lengths, const at::Tensor& x, const std::optional<at::Tensor>& outliers, double threshold,
                      const std::optional<at::Tensor>& added);
// Of the entries that go, [H, n] as drop_entries() takes them: how many lie before each of `rows` [H, m] int32. [H, m] int32.
at::Tensor goneBefore(const at::Tensor& entries, const at::Tensor& rows);
at::Tensor within(int64_t most, const at::Tensor& counts); // [H, most] bool: the first counts[h]
// Those of entries[h, :], as repack_across() takes them, go; the others move up with theirs.
void drop_beside(BesideValues& from, const at::Tensor& entries, int64_t dim);

} // namespace keepsight::ops
