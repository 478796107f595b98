// The engine's operators: declared once with the torch dispatcher (library "keepsight"), CPU implementations always,
// CUDA ones from the plug-in. Callers never ask which device they are on. Shapes: H heads, S new queries, C capacity, D head_dim, G = Hq/Hkv.
#pragma once

#include <ATen/core/Tensor.h>
#include <optional>

namespace keepsight::ops {

// y[S, out] = x[S, in] · Wᵀ. Stored weights: packed uint8 [out, rowBytes] with a WeightType number; the product is the one of the
// dequantized fp32 weights, accumulated in fp32, result in x's dtype. x fp32 or bf16. bias: [out] or undefined.
at::Tensor linear(const at::Tensor& x, const at::Tensor& packed, int64_t weightType, int64_t inFeatures, const std::optional<at::Tensor>& bias = {});
// Rows `ids` [S] int64 of a stored matrix, dequantized to dtype: [S, in].
at::Tensor embedding(const at::Tensor& ids, const at::Tensor& packed, int64_t weightType, int64_t inFeatures, at::ScalarType dtype);
// Whole matrix dequantized: [rows, in] in dtype.
at::Tensor dequantize(const at::Tensor& packed, int64_t weightType, int64_t inFeatures, at::ScalarType dtype);

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps); // x [S, hidden]; fp32 inside
at::Tensor silu_mul(const at::Tensor& gateUp);                                  // [S, 2F] → [S, F]: silu(first half) · second half

// Llama-style RoPE (pairs i, i + D/2). x [H, S, D]; positions [S] or [H, S] int32; inverse frequencies [D/2] fp32; angles in fp32.
// sign −1 rotates back. Returns a new tensor in x's dtype.
at::Tensor rope(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& inverseFrequencies, double sign = 1.0);

// What attention() may collect on its way without ever holding S × C weights; all optional, all accumulated (+=) in fp32.
struct AttentionStats {
    at::Tensor columnSum; // [Hq, C]: Σ over the S queries of the weight each entry received
    at::Tensor lastRows;  // [Hq, R, C]: weights of the last R ≤ S queries, overwritten
    at::Tensor map;       // [Hkv, rows, cols] (or [Hq, …]): Σ of weights by bin of original positions, mean over the group if Hkv
    int64_t mapRowBegin = 0, rowBin = 1, colBin = 1; // bin of query position p: (p − mapRowBegin)/rowBin; of key position p: p/colBin
    // causal_attention() leaves here what its forward pass knows anyway: [Hq, S] fp32, log Σ exp of each query's logits. Undefined: not known (one query).
    at::Tensor logSumExp;
};

// Attention of S new queries over the held entries, GQA, causal by original position: query i sees entry t of its KV head iff
// t < lengths[h] and positions[h, t] ≤ queryPositions[i]. Softmax in fp32.
// q [Hq, S, D] · k, v [Hkv, C, D] · positions [Hkv, C] int32 · lengths [Hkv] int32 · queryPositions [S] int32, ascending → [S, Hq·D] in q's dtype.
// Rows without a visible entry give 0.
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions, const at::Tensor& lengths,
                     const at::Tensor& queryPositions, double scale, AttentionStats* stats = nullptr);

// attention() over heads that lie behind each other, so that none takes more room than it needs: head h's entries are the lengths[h] rows from starts[h]
// on of k, v [N, D] and positions [N]; starts [Hkv] int32. Statistics are sized by capacity, at least every length and at most N.
at::Tensor ragged_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions, const at::Tensor& starts,
                            const at::Tensor& lengths, int64_t capacity, const at::Tensor& queryPositions, double scale, AttentionStats* stats = nullptr);

// Softmax rows of `queries` [Hq, w, D] at queryPositions [w] over the held keys: [Hq, w, C] fp32, 0 where not visible (the scorers' window rows).
at::Tensor attention_rows(const at::Tensor& queries, const at::Tensor& k, const at::Tensor& positions, const at::Tensor& lengths,
                          const at::Tensor& queryPositions, double scale);

// The same rows summed over the queries, of which none is held: [Hq, C].
at::Tensor attention_sums(const at::Tensor& queries, const at::Tensor& k, const at::Tensor& positions, const at::Tensor& lengths,
                          const at::Tensor& queryPositions, double scale);

// How much the attention output would change without an entry, summed over the S queries: [Hq, C] fp32, 0 where not visible. With a the weight,
// s the scaled logit, v the value, o the row's output: value Σ a²‖v‖² · key Σ (a·s)²‖v − o‖² · joint Σ ‖a·v + a·s·(v − o)‖² ·
// independent value + key. Arguments as for attention(); computed in blocks of rows. known: what causal_attention() of these queries gave, if it is at
// hand: no second forward pass then.
enum class OutputChange : int64_t { value, key, joint, independent };
struct KnownAttention {
    at::Tensor output;    // [S, Hq·D]; undefined will do for OutputChange::value
    at::Tensor logSumExp; // [Hq, S] fp32
};
at::Tensor output_change(const at::Tensor& queries, const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions, const at::Tensor& lengths,
                         const at::Tensor& queryPositions, double scale, OutputChange kind, const KnownAttention* known = nullptr);

// LagKV's spread (arXiv:2504.04704): of each row, the standard deviation over channels (n − 1) of (x − min)/(max − min), with every channel's extremes over
// the partition of `lag` rows behind the row's own; max − min is at least 1e-6. x [H, P·lag, D], any strides → [H, (P − 1)·lag] fp32.
at::Tensor lag_spread(const at::Tensor& x, int64_t lag);
// kᵀFk, summed in fp32, of every key with the form of each query head that reads it. keys [Hkv, n, D], any strides · forms [Hq, D, D] fp32 → [Hq, n] fp32.
at::Tensor quadratic_forms(const at::Tensor& keys, const at::Tensor& forms);

// The k highest of the first counts[h] scores of each row: indices, ascending, [H, k] int32, −1 behind where a row has fewer. scores [H, C] fp32, counts
// [H] int32. Of equal scores the larger index wins; NaN counts as −inf. The same on every device, bit for bit.
at::Tensor top_k(const at::Tensor& scores, const at::Tensor& counts, int64_t k);
// TokenSelect's vote: vote[t] = Σ over query heads of softmax over the candidates of scale · q̄·k_t, fp32. Candidates of a KV head are its entries
// begin ≤ t < lengths[h] − newest; what a head does not hold, or is no candidate of, gets nothing from it. queries [Hq, D] fp32 or in the keys'
// type · keys [Hkv, C, D] · lengths [Hkv] int32 → [C].
at::Tensor soft_vote(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& lengths, int64_t begin, int64_t newest, double scale);

// SnapKV's votes [Hkv, C]: sums / rows, the query heads of each KV head as one, pooled over `kernel` (odd) neighbours (their mean, zeros around count; or the
// largest), 0 from each head's `newest` entries on, as beyond the edges. sums [Hq or Hkv, C] fp32, none negative · lengths [Hkv] int32.
enum class GroupVote { mean, largest, sum };
at::Tensor grouped(const at::Tensor& perQueryHead, int64_t kvHeads, GroupVote how); // [Hq, …] → [Hkv, …]: the query heads of each KV head as one
at::Tensor pooled_votes(const at::Tensor& sums, const at::Tensor& lengths, double rows, int64_t newest, int64_t kernel, bool largest, GroupVote group);

// The first counts[h] entries of out[h] become src[h, index[h, i]]; src [H, C, ...], index [H, M] int32 ascending, counts [H] int32
// → [H, capacity, ...], rest zero. Any dtype.
at::Tensor gather_entries(const at::Tensor& src, const at::Tensor& index, const at::Tensor& counts, int64_t capacity);
// The same in place: keeps index[h, :counts[h]] at the front of x[h]; index ascending, so no entry is overwritten before it is moved.
void compact_entries(at::Tensor& x, const at::Tensor& index, const at::Tensor& counts);
// Writes src [H, S, ...] behind the first lengths[h] entries of dst [H, C, ...].
void append_entries(at::Tensor& dst, const at::Tensor& src, const at::Tensor& lengths);

// Entries stored as codes of 2, 3, 4 or 8 bits, written to rows [offsets[h], offsets[h] + counts[h]) of out[h]: x̃ = level(code) · scale + zero.
// out [H, C, D] · codes [H, N, packedBytes(D)] as pack_codes makes them · scale, zero [H, R, n] fp16, D/n neighbours share one · ends [H, G ≤ R]
// int32 ascending: row r of scale and zero is for entries before ends[h, r], the last row for all that follow; without ends row i is for entry i ·
// levels [2^bits] fp32: what a code stands for (without: its number).
void dequantize_entries(at::Tensor& out, const at::Tensor& codes, int64_t bits, const at::Tensor& scale, const at::Tensor& zero,
                        const std::optional<at::Tensor>& ends, const std::optional<at::Tensor>& levels, at::IntArrayRef counts,
                        at::IntArrayRef offsets);
// The last dimension of uint8 codes into bytes and back; layout in kernels/quant.h.
at::Tensor pack_codes(const at::Tensor& codes, int64_t bits);
at::Tensor unpack_codes(const at::Tensor& packed, int64_t bits, int64_t dim);

// One row through a layer's matrix in one pass, as devices decode: y [1, rows] = act(norm(x) · Wᵀ + bias) + residual, each step rounded to x's
// dtype as the separate operators round. x [1, in] · weight [rows, in] dense, in x's dtype (gated: [2 · rows, in], gate rows then up rows, and
// act is silu(gate) · up) · bias like the weight's rows · norm [in] fp32, the weight of an RMSNorm with eps · residual [1, rows].
struct MatvecOptions {
    std::optional<at::Tensor> bias{}, norm{}, residual{};
    double eps = 0;
    bool gated = false;
};
at::Tensor matvec(const at::Tensor& x, const at::Tensor& weight, const MatvecOptions& options);
// The same with a matrix as it is stored, as linear() has it: the steps round as the separate operators do, bit for bit.
at::Tensor stored_matvec(const at::Tensor& x, const at::Tensor& packed, int64_t weightType, int64_t inFeatures, const MatvecOptions& options);

// attention() where every head holds the same `held` entries and the S queries are the newest of them: query i sees all but the S − 1 − i last.
// Devices have fast kernels for it. With statistics, entries must lie at their position too. q [Hq, S, D] · k, v [Hkv, C, D] → [S, Hq·D].
at::Tensor causal_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t held, double scale, AttentionStats* stats = nullptr);

// One new token's qkv [1, (Hq + 2·Hkv)·D] before RoPE: queries and keys are turned by position [1] int32, the key, the value and the position are
// written behind each head's entries, and lengths [Hkv] grow by one. keys, values [Hkv, C, D] · positions [Hkv, C] int32. Every head needs a free
// place: the caller knows the lengths, this operator does not look. Returns the queries [Hq, 1, D].
at::Tensor rope_append(const at::Tensor& qkv, const at::Tensor& position, const at::Tensor& inverseFrequencies, at::Tensor& keys, at::Tensor& values,
                       at::Tensor& positions, at::Tensor& lengths);

// Keys or values of every KV head where most entries are codes, oldest to newest: counts[0, h] exact ones, counts[1, h] codes, counts[2, h] exact
// ones. A code stands for code · scale + zero; codes and their bytes as for dequantize_entries.
struct PackedSide {
    at::Tensor first, tail;  // [Hkv, …, D] in the query's type; undefined: none there
    at::Tensor codes;        // [Hkv, …, packedBytes(D)] uint8; undefined: none there
    int64_t bits = 0;        // 2, 3, 4 or 8
    at::Tensor scale, zero;  // [Hkv, R, n] fp16, D/n neighbouring channels share one
    int64_t groupTokens = 1; // row r of scale and zero is for the codes from r · groupTokens on, that many
    at::Tensor counts;       // [3, Hkv] int32, where the query is
    // Less usual forms; undefined: not these.
    at::Tensor ends;         // [Hkv, R] int32 ascending, instead of groupTokens: row r is for the codes before ends[h, r], the last row for all that follow
    at::Tensor levels;       // [2^bits] fp32: a code stands for levels[code] · scale + zero
    at::Tensor exact, places, exactCounts; // [Hkv, M] of a 16-bit type, [Hkv, M] int32 ascending, [Hkv] int32: of head h the first exactCounts[h] exact
                                           // values take the places of channels places % D of the codes places / D
    at::Tensor rowExact, rowChannels;      // [Hkv, …, m] of a 16-bit type, uint8 or int16: the same where every code has m of them, in these channels
    bool across = false;     // codes [1, g, packedBytes(C)], scale and zero [1, 1, C]: all heads' codes are one array, value f = (i + codes of the heads
                             // before) · D + channel lies in row f / W, column f % W with W = ⌈codes of all heads · D / g⌉ ≤ C columns in use
};
// Keys that are stored before RoPE are turned on their way: by their position, or by their rank 0, 1, … among the head's entries.
struct KeyTurn {
    at::Tensor inverseFrequencies; // [D/2] fp32; undefined: keys are as they are attended to
    bool byRank = false;
};
// attention() of one query, the newest, over such entries: codes are unpacked on their way, never written out. positions and lengths (of all three
// parts together) are read for the statistics and for turning keys. q [Hq, 1, D] → [1, Hq·D].
at::Tensor packed_attention(const at::Tensor& q, const PackedSide& keys, const PackedSide& values, const at::Tensor& positions, const at::Tensor& lengths,
                            const at::Tensor& queryPosition, double scale, AttentionStats* stats = nullptr, const KeyTurn& turn = {});

// attention() of one query, the newest entry's own, over the entries `chosen` [n] int32 (ascending, one set for all heads), read where they lie: keys
// before RoPE are turned by their rank 0 … n − 1 on their way, the query by n − 1. q [Hq, 1, D] before RoPE · k, v [Hkv, C, D] · positions [Hkv, C]
// int32 · inverse frequencies [D/2] fp32. An entry is seen iff its position ≤ queryPosition [1]. The statistics are of the set: C is n. → [1, Hq·D].
at::Tensor sparse_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions, const at::Tensor& chosen,
                            const at::Tensor& inverseFrequencies, const at::Tensor& queryPosition, double scale, AttentionStats* stats = nullptr);

// Evicts one entry of each KV head that holds more than limits[0]: the lowest scored (of equal ones the oldest; NaN is −inf) behind the first
// limits[1] and before the newest limits[2]; without scores the first of these. Of every tensor in `moved`, [H, C, …] with H a multiple of Hkv,
// the entries behind it move up by one; lengths shrink. scores [Hkv, C] fp32 · lengths [Hkv] int32 · limits [3] int32, where the entries are, with
// limits[1] + limits[2] ≤ limits[0] · moved[0] holds the positions. Returns what went, [2, Hkv] int32: positions, entries; −1 where none did.
at::Tensor drop_lowest(const std::optional<at::Tensor>& scores, at::Tensor& lengths, const at::Tensor& limits, at::ArrayRef<at::Tensor> moved);
// Evicts the entries entries[h, :] of each KV head (behind its length: none) in the same way. entries [Hkv] or [Hkv, n] int32, ascending behind those below 0,
// which are none · lengths [Hkv] int32 · moved as above, of any meaning.
void drop_entries(const at::Tensor& entries, at::Tensor& lengths, at::ArrayRef<at::Tensor> moved);

// Loads libkeepsight_cuda.so from beside the program once; false (and why) if there is no driver, no plug-in or it does not load.
bool loadCuda(std::string* why = nullptr);
// Bytes that can still be allocated on a device, what the allocator holds unused among them; nullopt: not known (no plug-in, the CPU).
std::optional<std::int64_t> freeMemory(at::Device device);

} // namespace keepsight::ops
