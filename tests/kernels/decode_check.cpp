// The plain passes of a device (matvec, rope_append, causal_attention, and decoding as a recorded graph) against the CPU and against the same
// pass step by step. Needs no Qt: exit 0 all equal within tolerance, 1 a difference, 77 no device (ctest: skipped).
//   decode_check [--quick [PART] | passes | selects | graphs | choices | packed | evicting | several] [QUANTIZER]   all; few cases, for a sanitizer (passes
//   graphs packed evicting choices: of these only); or one part, with the quantizers whose text begins so
#include "kernels/bind/ops.h"
#include "tests/support/tiny_model.h"

#include <ATen/ATen.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/InferenceMode.h>
#include <algorithm>
#include <cstdio>
#include <string_view>

using namespace keepsight;
using namespace keepsight::testing;

namespace {

int failures = 0, checks = 0;
std::string_view onlyQuantizers;

void expect(bool good, const std::string& what) {
    ++checks;
    if (good) return;
    ++failures;
    std::printf("FAIL %s\n", what.c_str());
}

void expectClose(const std::string& what, const at::Tensor& found, const at::Tensor& expected, double tolerance) {
    const at::Tensor a = found.to(at::kCPU, at::kFloat), b = expected.to(at::kCPU, at::kFloat);
    const double error = a.sizes() == b.sizes() ? (a - b).abs().max().item<double>() : INFINITY, scale = std::max(1.0, b.abs().max().item<double>());
    expect(error <= tolerance * scale, what + ": max error " + std::to_string(error) + " at scale " + std::to_string(scale));
}

at::Tensor gpu(const at::Tensor& t) { return t.to(at::kCUDA); }
double toleranceOf(at::ScalarType type) { return type == at::kFloat ? 2e-5 : 2e-2; }

void checkMatvec(at::ScalarType type, int rows, int width) {
    const at::Tensor x = at::randn({1, width}).to(type), weight = (at::randn({rows, width}) / std::sqrt(width)).to(type), bias = at::randn({rows}).to(type),
                     norm = at::rand({width}) + 0.5;
    const at::Tensor residual = at::randn({1, rows}).to(type);
    for (const bool gated : {false, true})
        for (const bool all : {false, true}) {
            if (gated && rows % 2) continue;
            ops::MatvecOptions own{.eps = 1e-5, .gated = gated}, device = own;
            const std::int64_t outputs = gated ? rows / 2 : rows;
            if (all) own.bias = bias, own.norm = norm, own.residual = residual.narrow(1, 0, outputs);
            if (all) device.bias = gpu(bias), device.norm = gpu(norm), device.residual = gpu(residual.narrow(1, 0, outputs).contiguous());
            // The CPU has no fp16: its reference is fp32 from the same rounded values.
            const at::ScalarType reference = type == at::kHalf ? at::kFloat : type;
            if (own.bias) own.bias = own.bias->to(reference), own.residual = own.residual->to(reference);
            const std::string name = "matvec " + std::string(c10::toString(type)) + " " + std::to_string(rows) + " x " + std::to_string(width) + (gated ? " gated" : "") + (all ? " all" : "");
            const at::Tensor y = ops::matvec(gpu(x), gpu(weight), device);
            expectClose(name, y, ops::matvec(x.to(reference), weight.to(reference), own), toleranceOf(type));
            expect(at::equal(y, ops::matvec(gpu(x), gpu(weight), device)), name + ": two runs differ");
        }
}

void checkRopeAppend(at::ScalarType type, int kvHeads, int group, int dim) {
    const std::int64_t capacity = 40, heads = kvHeads * (group + 2);
    const at::ScalarType reference = type == at::kHalf ? at::kFloat : type;
    const at::Tensor qkv = at::randn({1, heads * dim}).to(type), position = at::full({1}, 777, at::kInt), inverse = at::pow(at::Scalar(10000.0), -at::arange(0, dim, 2, at::kFloat) / dim);
    at::Tensor keys = at::randn({kvHeads, capacity, dim}).to(type), values = keys.clone(), positions = at::zeros({kvHeads, capacity}, at::kInt);
    at::Tensor lengths = at::arange(kvHeads, at::kInt) * 5, k = gpu(keys), v = gpu(values), p = gpu(positions), n = gpu(lengths);
    at::Tensor hostKeys = keys.to(reference), hostValues = values.to(reference);
    const at::Tensor q = ops::rope_append(gpu(qkv), gpu(position), gpu(inverse), k, v, p, n);
    const at::Tensor expected = ops::rope_append(qkv.to(reference), position, inverse, hostKeys, hostValues, positions, lengths);
    const std::string name = "rope_append " + std::string(c10::toString(type)) + " heads " + std::to_string(kvHeads) + "×" + std::to_string(group) + " dim " + std::to_string(dim);
    const double tolerance = type == at::kFloat ? 2e-4 : 2e-2;
    expectClose(name + " queries", q, expected, tolerance);
    expectClose(name + " keys", k, hostKeys, tolerance);
    expectClose(name + " values", v, hostValues, 0);
    expectClose(name + " positions", p, positions, 0);
    expectClose(name + " lengths", n, lengths, 0);
}

void checkCausal(at::ScalarType type, int kvHeads, int group, int dim, int count, int held) {
    const at::ScalarType reference = type == at::kHalf ? at::kFloat : type;
    const at::Tensor q = at::randn({kvHeads * group, count, dim}).to(type), k = at::randn({kvHeads, held + 5, dim}).to(type), v = at::randn({kvHeads, held + 5, dim}).to(type);
    const std::string name = "causal_attention " + std::string(c10::toString(type)) + " heads " + std::to_string(kvHeads) + "×" + std::to_string(group) + " dim " + std::to_string(dim) +
                             " " + std::to_string(count) + " of " + std::to_string(held);
    expectClose(name, ops::causal_attention(gpu(q), gpu(k), gpu(v), held, 0.1), ops::causal_attention(q.to(reference), k.to(reference), v.to(reference), held, 0.1), toleranceOf(type));
}

void checkSums(at::ScalarType type, int kvHeads, int group, int dim, int count, int held, int bin, int columnBin) {
    const at::ScalarType reference = type == at::kHalf ? at::kFloat : type;
    const at::Tensor q = 2 * at::randn({kvHeads * group, count, dim}).to(type), k = at::randn({kvHeads, held + 5, dim}).to(type), v = at::randn({kvHeads, held + 5, dim}).to(type);
    const std::string name = "sums " + std::string(c10::toString(type)) + " heads " + std::to_string(kvHeads) + "×" + std::to_string(group) + " dim " + std::to_string(dim) + " " +
                             std::to_string(count) + " of " + std::to_string(held) + " bins " + std::to_string(bin) + "×" + std::to_string(columnBin);
    for (const bool perHead : {false, true}) {
        const auto stats = [&](at::Device device) {
            const auto options = at::TensorOptions().dtype(at::kFloat).device(device);
            ops::AttentionStats s;
            s.columnSum = at::ones({kvHeads * group, held + 5}, options);
            s.lastRows = at::zeros({kvHeads * group, std::min(count, 3), held + 5}, options);
            s.map = at::ones({perHead ? kvHeads * group : kvHeads, (held + bin - 1) / bin, (held + columnBin - 1) / columnBin}, options);
            s.mapRowBegin = perHead && held > 40 ? held - count + 7 : 0; // else bins of 64 begin where tiles of queries do
            s.rowBin = bin, s.colBin = columnBin;
            return s;
        };
        ops::AttentionStats host = stats(at::kCPU), device = stats(at::kCUDA), again = stats(at::kCUDA);
        ops::causal_attention(q.to(reference), k.to(reference), v.to(reference), held, 0.1, &host);
        ops::causal_attention(gpu(q), gpu(k), gpu(v), held, 0.1, &device);
        ops::causal_attention(gpu(q), gpu(k), gpu(v), held, 0.1, &again);
        expectClose(name + " columns", device.columnSum, host.columnSum, 2e-3);
        expectClose(name + " rows", device.lastRows, host.lastRows, 2e-3);
        expectClose(name + " map", device.map, host.map, 2e-3);
        expect(at::equal(device.columnSum, again.columnSum) && at::equal(device.map, again.map), name + ": two runs differ");
        const at::Tensor logits = at::matmul(q.to(at::kFloat).view({kvHeads, group * count, dim}), k.narrow(1, 0, held).to(at::kFloat).transpose(1, 2)).mul(0.1).view({kvHeads * group, count, held});
        const at::Tensor hidden = at::arange(held).view({1, held}) > at::arange(held - count, held).view({count, 1});
        expectClose(name + " log-sum-exp", device.logSumExp, at::logsumexp(logits.masked_fill(hidden, -INFINITY), -1), 2e-3);
    }
}

// A lane on the device runs as a graph, with maps and without; the same on the CPU, operator by operator.
void checkGraph(const std::string& policyText, bool grows) {
    const auto weights = std::make_shared<TinyWeights>(3, 4, 2, 64);
    const auto policy = policyOf(policyText, Budget::kept(40));
    const std::vector<TokenId> ids = tinyIds(100), next = tinyIds(200, 3);
    BranchOptions plain{.headroom = grows ? 0 : 400}, mapped = plain;
    mapped.mapBin = 16, mapped.mapRows = 32, mapped.mapCols = 32;
    const auto lane = [&](const Model& model, const BranchOptions& options) {
        auto branch = std::make_unique<Branch>(model, prefillFor(model, ids, policy), policy, options);
        std::vector<at::Tensor> logits;
        for (const TokenId id : next) logits.push_back(branch->feed(std::span(&id, 1), LogitRows::last, true, {}).reshape({-1}));
        return std::pair(std::move(branch), at::stack(logits));
    };
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
        const std::unique_ptr<Model> device = Model::make(weights, type, at::Device(at::kCUDA, 0)), host = Model::make(weights, at::kFloat, at::kCPU);
        const auto [a, bare] = lane(*device, plain);
        const auto [b, withMap] = lane(*device, mapped);
        const auto [c, expected] = lane(*host, mapped);
        const std::string name = "graph of " + policyText + " " + c10::toString(type);
        expect(at::equal(bare, withMap), name + ": a map changes the logits");
        if (type != at::kFloat) continue; // a random model of bf16 may choose other entries than one of fp32
        expectClose(name + " logits", bare, expected, 2e-3);
        for (int l = 0; l < 3; ++l) {
            const CacheLayer &x = b->cache().layer(LayerIndex{l}), &y = c->cache().layer(LayerIndex{l});
            expect(x.held == y.held && at::equal(x.lengths.cpu(), y.lengths), name + ": lengths differ");
            expect(x.heldPositions() == y.heldPositions() && x.ragged() == y.ragged(), name + ": positions differ");
            expectClose(name + " map", b->map(LayerIndex{l}), c->map(LayerIndex{l}), 2e-3);
        }
    }
}

// Policies that choose at every token: the recorded steps against the same steps under the host's eyes, to the bit.
void checkChoices(const std::string& policyText, const Budget& budget) {
    const auto weights = std::make_shared<TinyWeights>(3, 4, 2, 64);
    const auto policy = policyOf(policyText, budget);
    const std::vector<TokenId> ids = tinyIds(100), next = tinyIds(120, 3);
    enum class By { device, host, turns };
    const auto lane = [&](const Model& model, By by) {
        BranchOptions options{.headroom = 16, .mapBin = 16, .mapRows = 32, .mapCols = 32, .explain = {}};
        if (by == By::host) options.explain = {100000}; // nothing to tell, but the host chooses
        Branch branch(model, prefillFor(model, ids, policy), policy, options);
        std::vector<at::Tensor> logits;
        for (const TokenId id : next) {
            const bool whole = by == By::turns && logits.size() % 10 > 6; // never recorded
            logits.push_back(branch.feed(std::span(&id, 1), whole ? LogitRows::all : LogitRows::last, true, {}).reshape({-1}));
        }
        return std::tuple(at::stack(logits), branch.takeEvictions(), branch.map(LayerIndex{1}).cpu(), branch.replayedSteps());
    };
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
        const std::unique_ptr<Model> model = Model::make(weights, type, at::Device(at::kCUDA, 0));
        const auto [expected, wanted, expectedMap, none] = lane(*model, By::host);
        for (const By by : {By::device, By::turns}) {
            const auto [logits, gone, map, replays] = lane(*model, by);
            if (by == By::device) expect(replays > 30, "choices of " + policyText + ": " + std::to_string(replays) + " of 120 steps replayed");
            const std::string name = "choices of " + policyText + " " + c10::toString(type);
            expect(at::equal(logits, expected), name + ": logits differ by " + std::to_string((logits - expected).abs().max().item<double>()));
            expect(at::equal(map, expectedMap), name + ": maps differ");
            const bool same = std::ranges::equal(gone, wanted, [](const Branch::Eviction& a, const Branch::Eviction& b) { return a.layer == b.layer && a.head == b.head && a.positions == b.positions; });
            expect(same, name + ": " + std::to_string(gone.size()) + " and " + std::to_string(wanted.size()) + " evictions differ");
        }
    }
}

std::shared_ptr<const Quantizer> quantizerOf(const std::string& text, const Model& model) {
    std::shared_ptr<Quantizer> quantizer = makeQuantizer(parseQuantSpec(text));
    if (!quantizer->wantsCalibration()) return quantizer;
    CalibrationSample sample; // keys after RoPE will do here
    const auto snapshot = prefillFor(model, tinyIds(200, 5), policyOf("full", {}));
    for (int l = 0; l < model.config().layers; ++l) {
        const CacheLayer& layer = snapshot->cache().layer(LayerIndex{l});
        sample.keys.push_back(layer.keys.narrow(1, 0, layer.maxHeld()).to(at::kCPU, at::kFloat));
        sample.values.push_back(layer.values.narrow(1, 0, layer.maxHeld()).to(at::kCPU, at::kFloat));
    }
    quantizer->calibrate(sample);
    return quantizer;
}

// Packed lanes: the recorded steps against the same steps as they are, to the bit; and, in fp32, against the CPU.
void checkQuantized(const std::string& policyText, const std::string& quantText, bool grows) {
    if (!quantText.starts_with(onlyQuantizers)) return;
    const auto weights = std::make_shared<TinyWeights>(3, 4, 2, 64);
    const auto policy = policyOf(policyText, Budget::kept(90));
    const std::shared_ptr<const Quantizer> quantizer = quantizerOf(quantText, *Model::make(weights, at::kFloat, at::kCPU));
    const std::vector<TokenId> ids = tinyIds(200), next = tinyIds(90, 3);
    const auto lane = [&](const Model& model, LogitRows rows) {
        BranchOptions options{.headroom = grows ? 0 : 200, .mapBin = 16, .mapRows = 32, .mapCols = 32, .quantizer = quantizer, .explain = {}};
        Branch branch(model, prefillFor(model, ids, policy), policy, options);
        std::vector<at::Tensor> logits;
        for (const TokenId id : next) logits.push_back(branch.feed(std::span(&id, 1), rows, true, {}).reshape({-1}));
        const CacheStats stats = branch.cache().stats();
        return std::tuple(at::stack(logits), branch.cache().layer(LayerIndex{1}).storedValues->packed(), stats.storedBytes, branch.map(LayerIndex{1}).cpu(), branch.replayedSteps());
    };
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
        const std::unique_ptr<Model> model = Model::make(weights, type, at::Device(at::kCUDA, 0));
        const auto [logits, packed, bytes, map, replays] = lane(*model, LogitRows::last);
        const auto [expected, wanted, wantedBytes, wantedMap, none] = lane(*model, LogitRows::all); // never recorded
        const std::string name = policyText + " with " + quantText + " " + c10::toString(type);
        expect(replays > 60 || grows, name + ": " + std::to_string(replays) + " of 90 steps replayed");
        expect(at::equal(logits, expected), name + ": logits differ by " + std::to_string((logits - expected).abs().max().item<double>()));
        expect(at::equal(map, wantedMap), name + ": maps differ");
        expect(packed == wanted && bytes == wantedBytes, name + ": packed entries or bytes differ");
        if (type != at::kFloat) continue;
        const auto [host, hostPacked, hostBytes, hostMap, hostReplays] = lane(*Model::make(weights, at::kFloat, at::kCPU), LogitRows::last);
        if (quantText.find("bits=2") == std::string::npos) expectClose(name + " and the CPU", logits, host, 5e-2); // a rounding may move a code, of which 2 bits have few
        const bool outliers = quantText.starts_with("outlier"); // of values near the threshold a rounding decides
        expect(packed == hostPacked && std::abs(bytes - hostBytes) <= (outliers ? hostBytes / 200 : 0), name + ": packed entries or bytes differ from the CPU's");
    }
}

// Packed lanes that lose entries while decoding: the recorded steps against the same under the host's eyes, and both in turns. In fp32 they read
// packed entries in the same way; in bf16 another kernel may serve, and only what does not hang on roundings is compared. least: replays that there
// cannot be if the steps that evict go through the host.
void checkPackedChoices(const std::string& policyText, const std::string& quantText, const Budget& budget, int least = 30) {
    if (!quantText.starts_with(onlyQuantizers)) return;
    const auto weights = std::make_shared<TinyWeights>(3, 4, 2, 64);
    const auto policy = policyOf(policyText, budget);
    const std::vector<TokenId> ids = tinyIds(130), next = tinyIds(120, 3);
    enum class By { device, host, turns };
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
        const std::unique_ptr<Model> model = Model::make(weights, type, at::Device(at::kCUDA, 0));
        const std::shared_ptr<const Quantizer> quantizer = quantizerOf(quantText, *model);
        const auto lane = [&](By by) {
            BranchOptions options{.headroom = 16, .quantizer = quantizer, .explain = {}};
            if (by == By::host) options.explain = {100000}; // nothing to tell, but the host chooses
            Branch branch(*model, prefillFor(*model, ids, policy), policy, options);
            std::vector<at::Tensor> logits;
            for (const TokenId id : next) {
                const bool whole = by == By::turns && logits.size() % 10 > 6; // never recorded
                logits.push_back(branch.feed(std::span(&id, 1), whole ? LogitRows::all : LogitRows::last, true, {}).reshape({-1}));
            }
            const CacheLayer& layer = branch.cache().layer(LayerIndex{1});
            const at::Tensor lengths = layer.lengths.cpu();
            expect(at::equal(lengths, at::tensor(layer.held, at::kInt)), policyText + " with " + quantText + ": host and device count differently");
            return std::tuple(at::stack(logits), branch.takeEvictions(), layer.storedKeys->packed(), layer.storedValues->packed(), branch.cache().stats().storedBytes, branch.replayedSteps(), layer.held);
        };
        const auto [expected, wanted, wantedKeys, wantedValues, wantedBytes, none, wantedHeld] = lane(By::host);
        for (const By by : {By::device, By::turns}) {
            const auto [logits, gone, keys, values, bytes, replays, held] = lane(by);
            const std::string name = policyText + " evicting with " + quantText + " " + c10::toString(type) + (by == By::turns ? ", in turns" : "");
            if (by == By::device) expect(replays > least, name + ": " + std::to_string(replays) + " of 120 steps replayed");
            expect(held == wantedHeld, name + ": other numbers of entries are held");
            if (type != at::kFloat) expectClose(name + " first logits", logits.narrow(0, 0, 3), expected.narrow(0, 0, 3), 5e-2);
            if (type != at::kFloat) continue;
            expectClose(name + " logits", logits, expected, 1e-4);
            const bool same = std::ranges::equal(gone, wanted, [](const Branch::Eviction& a, const Branch::Eviction& b) { return a.layer == b.layer && a.head == b.head && a.positions == b.positions; });
            expect(same, name + ": " + std::to_string(gone.size()) + " and " + std::to_string(wanted.size()) + " evictions differ");
            expect(keys == wantedKeys && values == wantedValues && bytes == wantedBytes, name + ": packed entries or bytes differ");
        }
    }
}

constexpr const char* Across[] = {"hqq_rtn:residual=40", "hqq_rtn:axis_key=0,bits=2,group=16,residual=30", "outlier_rtn:axis_key=0,threshold=1,residual=40", "layerquant:bits=8,end=1,range_bits=4"}; // groups across heads

void checkAllPackedChoices() {
    for (const auto& [policy, budget] : {std::pair("tova", Budget::removed(0.3)), {"streaming_llm:rope=original", Budget::kept(90)}, {"snapkv:window=8,timing=each_step", Budget::removed(0.3)},
                                         {"knorm:timing=each_step", Budget::kept(90)}, {"h2o:granularity=query_head", Budget::kept(90)}})
        for (const char* quantizer : {"kivi:bits=2,residual=32", "kvquant"}) checkPackedChoices(policy, quantizer, budget);
    for (const char* quantizer : {"kivi:bits=4,residual=32", "hqq_rtn:axis_value=1,group=32,residual=40", "kvquant", "outlier_rtn:axis_value=1,threshold=1"})
        for (const auto& [policy, budget] : {std::pair("h2o", Budget::kept(90)), {"tskip", Budget::removed(0.3)}}) checkPackedChoices(policy, quantizer, budget);
    for (const char* quantizer : Across)
        for (const auto& [policy, budget] : {std::pair("h2o", Budget::kept(90)), {"tova", Budget::removed(0.3)}}) checkPackedChoices(policy, quantizer, budget, 80);
}

void checkAllPackedChoicesOfSeveral() { // entries that go at once
    for (const char* quantizer : {"kivi:bits=4,residual=32", "hqq_rtn:axis_value=1,group=32,residual=40", "kvquant", "outlier_rtn:axis_value=1,threshold=1"}) {
        checkPackedChoices("knorm:timing=every:3", quantizer, Budget::kept(90), 80);
        checkPackedChoices("snapkv:window=8,timing=decode:4", quantizer, Budget::removed(0.3), 90);
        checkPackedChoices("snapkv:window=8,timing=each_step,heads=ada", quantizer, Budget::kept(90));
    }
    checkPackedChoices("h2o:heads=ada,granularity=query_head", "kivi:bits=2,residual=32", Budget::removed(0.3));
    checkPackedChoices("random:timing=every:3", "kvquant", Budget::kept(90), 80);
    checkPackedChoices("pyramidkv:window=8,timing=every:3", "kivi:bits=8,group=16,residual=16", Budget::kept(90), 80); // other numbers in other layers
    for (const char* quantizer : Across) {
        checkPackedChoices("knorm:timing=every:3", quantizer, Budget::kept(90), 80);
        checkPackedChoices("h2o:timing=every:16", quantizer, Budget::removed(0.3), 80);
        checkPackedChoices("snapkv:window=8,timing=each_step,heads=ada", quantizer, Budget::kept(90));
    }
}

void checkAllQuantized() {
    for (const char* quantizer : {"kivi:bits=4,residual=32", "kivi:bits=2,residual=64", "kivi:bits=8,residual=32", "hqq_rtn:axis_value=1,group=32,residual=40", "hqq_rtn:residual=40", "layerquant", "kvquant", "kvquant:bits=3",
                                  "kvquant:bits=2,outliers=0", "outlier_rtn:axis_value=1,threshold=1", "outlier_rtn:threshold=1,residual=40"})
        for (const bool grows : {false, true}) {
            checkQuantized("full", quantizer, grows);
            checkQuantized("snapkv:window=8", quantizer, grows);
        }
    checkQuantized("snapkv:window=8,heads=ada", "kivi:bits=4,residual=32", true);
}

// What stays after a prefill, ranked on the device and on the host.
void checkSelect(int held, bool shared, bool ties) {
    constexpr int Heads = 8;
    at::Tensor scores = ties ? at::randint(-30, 30, {Heads, held + 7}).to(at::kFloat) : at::randn({Heads, held + 7});
    scores[1][held / 2] = NAN, scores[2][held / 3] = INFINITY, scores[3][held / 4] = -INFINITY;
    const std::vector<std::int32_t> all(Heads, held);
    for (const double part : {0.01, 0.1, 0.5, 0.9})
        for (const Protect protect : {Protect{0, 0}, Protect{4, 64}}) {
            const Plan plan{.keep = std::max(1, static_cast<int>(part * held)), .protect = protect, .adaptive = shared};
            std::string here, there;
            expect(select(scores, all, plan, &here).keep == select(gpu(scores), all, plan, &there).keep && here == there,
                   "select " + std::to_string(plan.keep) + " of " + std::to_string(held) + (shared ? " shared" : "") + (ties ? " ties" : ""));
        }
}

void checkAllChoices() {
    for (const char* policy : {"h2o", "h2o:agg=max,history=last", "h2o:granularity=query_head", "tova", "knorm:timing=each_step", "snapkv:window=8,timing=each_step", "window", "streaming_llm",
                               "streaming_llm:rope=original", "attn:timing=each_step", "observed_attention:timing=every:3", "pyramidkv:window=8,timing=each_step", "kvcV", "kvcVK+maxpool", "kvcK+avgpool",
                               "kvcV_p1_fullhist", "kvcV+tova", "keydiff:timing=each_step", "expected_attention:timing=each_step", "lagkv:timing=each_step,lag=8", "tskip", "tskip:force_recent=5,norm=low",
                               "compose:timing=each_step", "compose:first=knorm,second=keydiff,timing=each_step,share=0.4"})
        for (const Budget& budget : {Budget::kept(40), Budget::removed(0.5)}) checkChoices(policy, budget);
    checkChoices("lagkv:form=official,lag=8,ratio=0.5", {});
    // Heads that share a budget, several evictions at once, draws of the host.
    for (const char* policy : {"snapkv:window=8,timing=each_step,heads=ada", "h2o:heads=ada,ada_floor=0.5", "knorm:timing=each_step,heads=ada,sinks=2,recent=5", "h2o:heads=ada,granularity=query_head",
                               "snapkv:window=8,timing=every:5,heads=ada", "knorm:timing=every:4", "streaming_llm:timing=every:3", "random:timing=each_step", "random:timing=every:3"})
        for (const Budget& budget : {Budget::kept(40), Budget::removed(0.5)}) checkChoices(policy, budget);
    checkChoices("knorm:timing=decode:6", Budget::kept(40));
    for (const char* policy : {"tokenselect:init=4,top_k=20,local=16,theta=2", "tokenselect:init=4,top_k=20,local=16,theta=0.5,kernel=3", "tokenselect:init=4,top_k=150,local=16"})
        checkChoices(policy, {});
    for (const char* policy : {"tokenselect:theta=0.9", "tokenselect:theta=2"}) checkChoices(policy, Budget::removed(0.5));
}

void checkAllPasses() {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
        for (const auto& [rows, width] : {std::pair(1, 8), {2, 64}, {7, 576}, {30, 1000}, {33, 12}, {960, 576}, {36002, 576}, {40000, 64}, {6, 80000}, {6144, 4096}, {4096, 14336}}) checkMatvec(type, rows, width);
        for (const int dim : {64, 80, 96, 128, 256}) checkRopeAppend(type, 3, 3, dim), checkRopeAppend(type, 1, 8, dim);
        for (const int dim : {64, 80, 128})
            for (const auto& [count, held] : {std::pair(2, 2), {33, 33}, {33, 34}, {130, 500}, {1, 70}}) checkCausal(type, 2, 4, dim, count, held), checkCausal(type, 3, 1, dim, count, held);
    }
    for (const at::ScalarType type : {at::kBFloat16, at::kHalf})
        for (const int dim : {64, 128})
            for (const auto& [count, held, rowBin, colBin] : {std::tuple(2, 2, 1, 1), {33, 33, 4, 4}, {130, 500, 16, 16}, {700, 700, 100, 100}, {65, 129, 1, 1}, {300, 1500, 128, 128}, {700, 700, 64, 64}, {700, 1500, 24, 200}})
                checkSums(type, 2, 4, dim, count, held, rowBin, colBin), checkSums(type, 3, 1, dim, count, held, rowBin, colBin);
}

} // namespace

int main(int argc, char** argv) {
    const c10::InferenceMode guard;
    std::string why;
    if (!ops::loadCuda(&why) || !at::hasCUDA() || at::detail::getCUDAHooks().getNumGPUs() == 0) {
        std::printf("skipped: %s\n", why.empty() ? "the driver shows no device" : why.c_str());
        return 77;
    }
    at::manual_seed(1);
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    const std::string_view part = argc > 1 ? argv[1] : "";
    if (part == "--quick") { // for compute-sanitizer
        const auto quick = [&](std::string_view name) { return argc < 3 || name == argv[2]; };
        if (quick("passes")) {
            checkMatvec(at::kBFloat16, 33, 64), checkMatvec(at::kBFloat16, 18002, 104), checkMatvec(at::kBFloat16, 6, 80000), checkRopeAppend(at::kBFloat16, 3, 3, 80);
            checkCausal(at::kBFloat16, 2, 4, 64, 33, 70);
            checkSums(at::kBFloat16, 2, 4, 64, 130, 200, 16, 16), checkSums(at::kBFloat16, 2, 4, 128, 300, 300, 24, 100);
        }
        if (quick("graphs")) checkGraph("snapkv:window=8", true);
        if (quick("packed")) checkQuantized("full", "kivi:bits=4,residual=32", true);
        if (quick("evicting")) checkPackedChoices("h2o", "hqq_rtn:axis_key=0,residual=40", Budget::kept(90), 80);
        if (quick("choices"))
            for (const char* policy : {"h2o", "streaming_llm", "tokenselect:init=4,top_k=20,local=16,theta=0.5"}) checkChoices(policy, Budget::kept(40));
    } else if (argc > 2) {
        onlyQuantizers = argv[2];
    }
    const auto wanted = [&](std::string_view name) { return part.empty() || part == name; };
    if (wanted("passes")) checkAllPasses();
    if (wanted("selects"))
        for (const int held : {33, 4097, 32768, 150001})
            for (const bool shared : {false, true})
                for (const bool ties : {false, true}) checkSelect(held, shared, ties);
    if (wanted("graphs"))
        for (const char* policy : {"full", "snapkv:window=8", "snapkv:window=8,heads=ada", "streaming_llm:rope=original,timing=prefill_end"})
            for (const bool grows : {false, true}) checkGraph(policy, grows);
    if (wanted("choices")) checkAllChoices();
    if (wanted("packed")) checkAllQuantized();
    if (wanted("evicting")) checkAllPackedChoices();
    if (wanted("several")) checkAllPackedChoicesOfSeveral();
    std::printf("%d checks, %d failed\n", checks, failures);
    return failures ? 1 : 0;
}
