// Every policy and quantizer on the CPU and on CUDA from the same numbers (policies.md §0.7 e): the same choice, the same stored values.
// Exits with 77 where there is no device. Run it after a change to a policy, a quantizer or an operator.
#include "engine/cache/quantizer.h"
#include "engine/data/error.h"
#include "tests/support/layer_view.h"
#include "tests/support/tiny_model.h"

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/InferenceMode.h>
#include <cstdio>

using namespace keepsight;
using namespace keepsight::testing;

namespace {

constexpr int KvHeads = 2, QueryHeads = 6, Dim = 64, Tokens = 700, Window = 128;
int passed = 0, failed = 0;

void tell(bool good, const std::string& what, const std::string& how) {
    ++(good ? passed : failed);
    if (!good) std::printf("FAIL %s: %s\n", what.c_str(), how.c_str());
}

struct Inputs {
    at::Tensor keys, values, queries, sums, moments;
    Inputs to(at::Device device) const { return {keys.to(device), values.to(device), queries.to(device), sums.to(device), moments.to(device)}; }
};

// What a policy keeps, or attends to, of one layer.
std::vector<std::vector<std::int32_t>> chosen(const std::string& text, const Inputs& in) {
    const at::Device device = in.keys.device();
    const auto policy = policyOf(text, Budget::removed(0.5));
    LayerFixture f(in.keys, in.values, in.queries);
    f.entries.positions = f.entries.positions.to(device);
    f.entries.lengths = f.entries.lengths.to(device);
    f.queryPositions = f.queryPositions.to(device);
    LayerView view = f.view();
    view.inverseFrequencies = view.inverseFrequencies.to(device);
    const QueryMoments moments{in.moments.sum(1), at::matmul(in.moments.transpose(1, 2), in.moments), in.moments.size(1)};
    view.moments = &moments;
    const auto memory = policy->remember();
    if (policy->kind() == PolicyKind::attend) {
        Place place = f.place();
        place.fresh = 1;
        view.queries = in.queries.narrow(1, Window - 1, 1);
        const at::Tensor entries = policy->attend(view, place, memory.get()).value().entries.cpu().contiguous();
        return {{entries.const_data_ptr<std::int32_t>(), entries.const_data_ptr<std::int32_t>() + entries.size(0)}};
    }
    const Plan plan = policy->planFor(f.place());
    return policy->choose(view, f.place(), plan, policy->score(view, plan, policy->statistic(view, plan, in.sums)), memory.get(), nullptr).keep;
}

void comparePolicy(const std::string& text, const Inputs& host, const Inputs& device) {
    const auto a = chosen(text, host), b = chosen(text, device);
    std::size_t all = 0, apart = 0;
    for (std::size_t h = 0; h < a.size(); ++h) {
        std::vector<std::int32_t> both;
        std::ranges::set_intersection(a[h], b.at(h), std::back_inserter(both));
        all += a[h].size();
        apart += a[h].size() - both.size();
    }
    // Scores that are equal up to rounding may trade places.
    tell(apart * 500 <= all, text, std::to_string(apart) + " of " + std::to_string(all) + " entries differ");
}

// The side after a prompt, some decoded tokens and an eviction.
at::Tensor stored(const Quantizer& quantizer, Side side, const at::Tensor& x, std::int64_t& bytes) {
    const auto s = quantizer.make(side, LayerIndex{1}, {KvHeads, Dim, at::kFloat, x.device()});
    s->append(x.narrow(1, 0, 500));
    s->settle(true);
    for (int t = 500; t < 560; ++t) {
        s->append(x.narrow(1, t, 1));
        s->settle(false);
    }
    Selection selection;
    for (int h = 0; h < KvHeads; ++h) {
        auto& keep = selection.keep.emplace_back();
        for (int i = 0; i < 560; ++i)
            if ((i * 7 + h) % 5 > h) keep.push_back(i);
    }
    s->keep(selection);
    bytes = s->storedBytes();
    return s->dense(560).to(at::kCPU);
}

void compareQuantizer(const std::string& text, const Inputs& host, const Inputs& device) {
    std::shared_ptr<Quantizer> quantizer = makeQuantizer(parseQuantSpec(text));
    if (quantizer->wantsCalibration()) quantizer->calibrate({{host.keys, host.keys}, {host.values, host.values}});
    for (const Side side : {Side::keys, Side::values}) {
        std::int64_t bytesA = 0, bytesB = 0;
        const at::Tensor a = stored(*quantizer, side, side == Side::keys ? host.keys : host.values, bytesA);
        const at::Tensor b = stored(*quantizer, side, side == Side::keys ? device.keys : device.values, bytesB);
        // A rounding may send a value to the neighbouring code; few do.
        const double apart = (a - b).abs().gt(1e-3 * a.abs().max()).to(at::kDouble).mean().item<double>();
        tell(apart <= 1e-3 && std::abs(bytesA - bytesB) * 1000 <= bytesA, text + (side == Side::keys ? " keys" : " values"),
             std::to_string(100 * apart) + " % of the values differ, " + std::to_string(bytesA) + " and " + std::to_string(bytesB) + " bytes");
    }
}

} // namespace

int main() {
    const c10::InferenceMode guard;
    std::string why;
    if (!ops::loadCuda(&why) || !at::hasCUDA() || at::detail::getCUDAHooks().getNumGPUs() == 0) {
        std::printf("no CUDA device: %s\n", why.c_str());
        return 77;
    }
    at::manual_seed(5);
    const Inputs host{at::randn({KvHeads, Tokens, Dim}), at::randn({KvHeads, Tokens, Dim}), at::randn({QueryHeads, Window, Dim}), at::rand({QueryHeads, Tokens}),
                      at::randn({QueryHeads, 300, Dim}, at::kDouble)};
    const Inputs device = host.to(at::Device(at::kCUDA, 0));
    std::vector<std::string> policies;
    for (const PolicyEntry& entry : policyRegistry()) policies.push_back(entry.info.id);
    for (const char* text : {"snapkv:heads=ada", "snapkv:pool=max,kernel=7,agg=max", "h2o:heads=ada", "h2o:history=last", "knorm:chunk=100", "h2o:layers=0.2/0.8", "lagkv:form=official,lag=64",
                             "pyramidkv:form=original", "compose:first=keydiff,second=tova"})
        policies.push_back(text);
    const auto guarded = [](const std::string& what, auto&& compare) {
        try {
            compare();
        } catch (const std::exception& e) {
            tell(false, what, e.what());
        }
    };
    for (const std::string& text : policies)
        guarded(text, [&] { comparePolicy(text, host, device); });
    for (const char* text : {"kivi:bits=8", "kivi:bits=4", "kivi:bits=2", "kvquant:bits=8", "kvquant:bits=4", "kvquant:bits=2,qnorm=on", "hqq_rtn:bits=8", "hqq_rtn:bits=4", "hqq_rtn:bits=2",
                             "hqq_rtn:axis_key=0", "outlier_rtn:threshold=2", "layerquant", "layerquant:end=0"})
        guarded(text, [&] { compareQuantizer(text, host, device); });
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed ? 1 : 0;
}
