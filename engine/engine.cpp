#include "engine/engine.h"

#include "engine/data/error.h"
#include "engine/eval/evaluation.h"
#include "engine/session/calibration.h"
#include "engine/session/lane_check.h"
#include "engine/session/sampler.h"
#include "engine/trace/recorder.h"
#include "kernels/bind/ops.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/InferenceMode.h>
#include <torch/version.h>
#include <algorithm>
#include <cmath>
#include <ctime>
#include <malloc.h>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#ifndef KEEPSIGHT_VERSION
#define KEEPSIGHT_VERSION "0.2.0"
#endif

namespace keepsight {
namespace {

constexpr Position MaxFullResolution = 8192;
constexpr std::int64_t HashAtOnce = std::int64_t{1} << 30; // bytes: well below a second

std::string utcNow() {
    const std::time_t now = std::time(nullptr);
    std::tm parts{};
    gmtime_r(&now, &parts);
    char text[32];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
    return text;
}

at::Device chooseDevice(const std::string& wanted) {
    if (wanted == "cpu") return at::kCPU;
    if (wanted != "auto" && wanted != "cuda" && !(wanted.starts_with("cuda:") && wanted.size() > 5 && wanted.find_first_not_of("0123456789", 5) == std::string::npos))
        throw UsageError("device: expected auto, cpu, cuda or cuda:N, found '" + wanted + "'");
    std::string why;
    const bool cuda = ops::loadCuda(&why) && at::hasCUDA() && at::detail::getCUDAHooks().getNumGPUs() > 0;
    if (wanted == "auto") return cuda ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
    if (!cuda) throw EngineError("device " + wanted + ": no usable CUDA device: " + (why.empty() ? "the driver shows none" : why));
    const int index = wanted.size() > 5 ? std::atoi(wanted.c_str() + 5) : 0;
    if (index >= at::detail::getCUDAHooks().getNumGPUs())
        throw EngineError("device " + wanted + ": the driver shows " + std::to_string(at::detail::getCUDAHooks().getNumGPUs()) + " device(s), the first is cuda:0");
    return at::Device(at::kCUDA, static_cast<at::DeviceIndex>(index));
}

at::ScalarType chooseType(const std::string& wanted, at::Device device) {
    if (wanted == "auto") return device.is_cpu() ? at::kFloat : at::kBFloat16;
    if (wanted == "fp32") return at::kFloat;
    if (wanted == "bf16") return at::kBFloat16;
    if (wanted == "fp16") {
        if (device.is_cpu()) throw UsageError("dtype fp16 is for CUDA devices; on the CPU use fp32 or bf16");
        return at::kHalf;
    }
    throw UsageError("dtype: expected auto, fp32, bf16 or fp16, found '" + wanted + "'");
}

const char* typeName(at::ScalarType type) { return type == at::kFloat ? "fp32" : type == at::kBFloat16 ? "bf16" : "fp16"; }

// Inference everywhere below the facade: no autograd bookkeeping, and the job's thread count on whichever thread runs it.
struct Scope {
    explicit Scope(int threads) { at::set_num_threads(threads); }
    c10::InferenceMode guard;
};

} // namespace

struct Engine::Private {
    mutable std::mutex mutex; // guards everything below
    std::shared_ptr<const WeightFile> file;
    std::shared_ptr<const Model> model;
    std::shared_ptr<const Tokenizer> tokenizer;
    ChatFrame frame;
    std::vector<TokenId> stopTokens;
    ModelInfo info;
    std::shared_ptr<const Snapshot> snapshot; // of the last score or generate job
    int threads = 1;
    std::map<std::string, std::shared_ptr<const Quantizer>> calibrated; // by spec, of the open model

    struct Loaded;
    // Ready to store: calibrated where it wants that, once per model. Null for none.
    std::shared_ptr<const Quantizer> quantizer(const QuantSpec& spec, const Loaded& loaded, std::stop_token stop);
    // The last prefill with the model it refers to; null: none.
    struct Held {
        std::shared_ptr<const Snapshot> snapshot;
        std::shared_ptr<const Model> model;
        int threads = 1;
    };
    Held held() const {
        const std::lock_guard lock(mutex);
        return {model ? snapshot : nullptr, model, threads};
    }

    // What a call needs, held alive while it runs.
    struct Loaded {
        std::shared_ptr<const Model> model;
        std::shared_ptr<const Tokenizer> tokenizer;
        ChatFrame frame;
        std::vector<TokenId> stopTokens;
        ModelInfo info;
        int threads;
    };
    Loaded loaded() const {
        const std::lock_guard lock(mutex);
        if (!model) throw EngineError("no model is open; open a Hugging Face directory or a .gguf file first");
        return {model, tokenizer, frame, stopTokens, info, threads};
    }
};

Engine::Engine() : d(std::make_unique<Private>()) {}
Engine::~Engine() = default;

std::string Engine::version() { return KEEPSIGHT_VERSION; }

const std::vector<PolicyInfo>& Engine::policies() {
    static const std::vector<PolicyInfo> infos = [] {
        std::vector<PolicyInfo> out;
        for (const PolicyEntry& entry : policyRegistry()) out.push_back(entry.info);
        return out;
    }();
    return infos;
}

const std::vector<QuantInfo>& Engine::quantizers() {
    static const std::vector<QuantInfo> infos = [] {
        std::vector<QuantInfo> out;
        for (const QuantEntry& entry : quantRegistry()) out.push_back(entry.info);
        return out;
    }();
    return infos;
}

PolicySpec Engine::parsePolicy(std::string_view text) { return parsePolicySpec(text); }
QuantSpec Engine::parseQuant(std::string_view text) { return parseQuantSpec(text); }
void Engine::checkPolicy(const PolicySpec& spec) { checkLane(spec); }
std::string Engine::incompatibility(const PolicySpec& spec) { return laneConflict(spec); }

Outcome Engine::open(const OpenOptions& options, std::stop_token stop, const OnProgress& progress) {
    const auto report = [&](const char* stage, std::int64_t done) {
        if (progress) progress({stage, done, 4, -1});
    };
    report("reading model file", 0);
    const at::Device device = chooseDevice(options.device);
    const at::ScalarType type = chooseType(options.dtype, device);
    const int threads = options.threads > 0 ? options.threads : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    const Scope scope(threads);
#ifdef __GLIBC__
    // Logits and activations of tens of MB come and go with every block: kept in the heap, their pages are not faulted in anew each time.
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
#endif
    std::shared_ptr<const WeightFile> file = openWeights(options.model);
    if (stop.stop_requested()) return Outcome::cancelled;
    report("tokenizer", 1);
    std::shared_ptr<const Tokenizer> tokenizer = makeTokenizer(file->tokenizer());
    if (tokenizer->vocab() > file->config().vocab)
        throw EngineError("model: the tokenizer has " + std::to_string(tokenizer->vocab()) + " tokens, the embedding only " + std::to_string(file->config().vocab) + " rows");
    if (stop.stop_requested()) return Outcome::cancelled;
    report("weights", 2);
    std::shared_ptr<const Model> model = Model::make(file, type, device);
    if (stop.stop_requested()) return Outcome::cancelled;
    report("checksum", 3);

    ModelInfo info;
    info.config = file->config();
    info.path = options.model.string();
    info.format = file->format();
    std::map<std::string, int> types;
    for (const auto& [name, tensor] : file->tensors()) {
        ++types[keepsight::name(tensor.type)];
        std::int64_t count = 1;
        for (const std::int64_t n : tensor.shape) count *= n;
        info.parameters += count;
        info.weightBytes += static_cast<std::int64_t>(tensor.bytes.size());
    }
    for (const auto& [name, count] : types) info.weightTypes += (info.weightTypes.empty() ? "" : ", ") + name + " " + std::to_string(count);
    info.tokenizer = tokenizer->describe();
    ChatFrame frame = chatFrameFor(file->tokenizer().chatTemplate);
    info.chatTemplate = frame.name;
    info.dtype = typeName(type);
    info.device = device.str();
    info.kvBytesPerToken =
        static_cast<std::int64_t>(info.config.layers) * info.config.kvHeads * info.config.headDim * 2 * static_cast<std::int64_t>(c10::elementSize(type));

    // Sessions name the model by its hash; for large files, whose hash takes seconds, only once somebody asks (ensureHash).
    if (info.weightBytes < HashAtOnce) info.sha256 = weightHash(file->files());

    std::vector<TokenId> stops = file->stopTokens();
    if (tokenizer->eos() >= 0) stops.push_back(tokenizer->eos());
    for (const std::string& text : frame.stops) {
        const std::vector<TokenId> ids = tokenizer->encode(text, {.parseSpecial = true, .addSpecial = false});
        if (ids.size() == 1) stops.push_back(ids.front());
    }
    std::sort(stops.begin(), stops.end());
    stops.erase(std::unique(stops.begin(), stops.end()), stops.end());

    const std::lock_guard lock(d->mutex);
    d->file = std::move(file);
    d->model = std::move(model);
    d->tokenizer = std::move(tokenizer);
    d->frame = std::move(frame);
    d->stopTokens = std::move(stops);
    d->info = std::move(info);
    d->snapshot.reset();
    d->calibrated.clear();
    d->threads = threads;
    if (progress) progress({"ready", 4, 4, 0});
    return Outcome::complete;
}

void Engine::close() {
    const std::lock_guard lock(d->mutex);
    d->snapshot.reset();
    d->model.reset();
    d->tokenizer.reset();
    d->file.reset();
    d->info = {};
}

bool Engine::isOpen() const {
    const std::lock_guard lock(d->mutex);
    return d->model != nullptr;
}

ModelInfo Engine::model() const { return d->loaded().info; }

ModelInfo Engine::ensureHash(std::stop_token) {
    std::shared_ptr<const WeightFile> file;
    {
        const std::lock_guard lock(d->mutex);
        if (!d->file) throw EngineError("no model is open; open a Hugging Face directory or a .gguf file first");
        if (!d->info.sha256.empty()) return d->info;
        file = d->file;
    }
    const std::string hash = weightHash(file->files()); // outside the lock: seconds for large files
    const std::lock_guard lock(d->mutex);
    if (d->file == file) d->info.sha256 = hash;
    return d->info;
}

Tokens Engine::tokenize(const PromptSpec& prompt) const {
    const Private::Loaded m = d->loaded();
    Tokens out;
    out.ids = promptIds(*m.tokenizer, m.frame, prompt);
    for (const TokenId id : out.ids) out.pieces.push_back(m.tokenizer->bytes(id));
    return out;
}

std::string Engine::decode(const std::vector<TokenId>& ids) const { return d->loaded().tokenizer->decode(ids); }

Outcome Engine::run(const Job& job, TraceSink& sink, std::stop_token stop, const OnProgress& progress, const Trace* resume) {
    // begin and end exactly once, whatever happens and wherever.
    struct OnceSink final : TraceSink {
        TraceSink& to;
        bool begun = false, ended = false;
        explicit OnceSink(TraceSink& sink) : to(sink) {}
        void begin(const Trace& header) override {
            begun = true;
            to.begin(header);
        }
        void add(LaneIndex lane, const TokenRecord& token) override { to.add(lane, token); }
        void add(LaneIndex lane, const StepRecord& step) override { to.add(lane, step); }
        void add(const KeepRecord& record) override { to.add(record); }
        void add(std::shared_ptr<const AttentionMap> map) override { to.add(std::move(map)); }
        void add(const Measurement& measurement) override { to.add(measurement); }
        void notice(LaneIndex lane, const std::string& text) override { to.notice(lane, text); }
        void end(Outcome outcome, const std::string& failure) override {
            if (std::exchange(ended, true)) return; // a sink that failed at the end is not told again
            to.end(outcome, failure);
        }
    } once(sink);

    Trace header;
    header.run.kind = name(job.kind);
    header.run.jobJson = jobToJson(job);
    header.run.toolVersion = version();
    header.run.torchVersion = TORCH_VERSION;
    header.run.createdUtc = utcNow();
    header.run.seed = job.seed;
    // After a failure the sink may be what failed (a full disk): the first sentence is the one to tell.
    const auto finish = [&](Outcome outcome, const std::string& failure) {
        try {
            if (!once.begun) once.begin(header);
            once.end(outcome, failure);
        } catch (const EngineError&) {
            if (failure.empty()) throw;
        }
    };
    std::string failure;
    try {
        const Private::Loaded m = d->loaded();
        const Scope scope(m.threads);
        header.model = m.info;
        header.run.device = m.info.device;
        header.run.dtype = m.info.dtype;
        header.run.threads = m.threads;
        header.run.commandLine = job.commandLine.empty() ? commandLineOf(job, m.info.path) : job.commandLine;
        if (job.lanes.empty()) throw UsageError("run: expected at least one lane (a policy with a budget), found none");
        std::vector<std::shared_ptr<const Policy>> policies;
        std::vector<std::shared_ptr<const Quantizer>> quantizers;
        for (const LaneSpec& lane : job.lanes) {
            checkLane(lane.policy, &m.info.config);
            policies.push_back(makePolicy(lane.policy));
            quantizers.push_back(d->quantizer(lane.policy.quant, m, stop));
            Lane empty;
            empty.label = lane.label;
            empty.policy = policies.back()->spec();
            empty.retention = Retention(m.info.config.layers, storedHeads(m.info.config, empty.policy));
            header.lanes.push_back(std::move(empty));
        }
        EvalContext context{*m.model, *m.tokenizer, m.frame, m.stopTokens, job, std::move(policies), std::move(quantizers), once, stop, progress, header,
                            [this](std::shared_ptr<const Snapshot> s) {
                                const std::lock_guard lock(d->mutex);
                                d->snapshot = std::move(s);
                            },
                            resume};
        switch (job.kind) {
#define KEEPSIGHT_EVALUATION(kind, function)                                                                                                             \
    case RunKind::kind: function(context); break;
#include "engine/eval/evaluations.def"
#undef KEEPSIGHT_EVALUATION
        }
        finish(Outcome::complete, {});
        return Outcome::complete;
    } catch (const Cancelled&) {
        finish(Outcome::cancelled, {});
        return Outcome::cancelled;
    } catch (const UsageError& e) {
        finish(Outcome::complete, e.what());
        throw;
    } catch (const EngineError& e) {
        finish(Outcome::complete, e.what());
        throw;
    } catch (const std::bad_alloc&) {
        failure = "out of memory during the run; use fewer tokens, lanes or a smaller model";
    } catch (const c10::Error& e) {
        const bool memory = std::string_view(e.what_without_backtrace()).find("memory") != std::string_view::npos;
        failure = memory ? "out of memory during the run; use fewer tokens, lanes or a smaller model"
                         : std::string("torch reported: ") + std::string(e.what_without_backtrace()).substr(0, 200);
    } catch (const std::exception& e) { // nothing else is thrown on purpose; the recording still gets its end
        failure = std::string("internal error: ") + e.what();
    }
    finish(Outcome::complete, failure);
    throw EngineError(failure);
}

std::optional<KeptSets> Engine::preview(const PolicySpec& spec) const {
    const auto [snapshot, model, threads] = d->held(); // the snapshot refers to the model's configuration
    if (!snapshot) return std::nullopt;
    const Scope scope(threads);
    const std::unique_ptr<const Policy> policy = makePolicy(spec);
    if (!snapshot->serves(*policy)) return std::nullopt;
    const std::unique_ptr<Quantizer> quantizer = makeQuantizer(spec.quant);
    const Snapshot::Choice choice = snapshot->choose(*policy, quantizer.get());
    KeptSets out;
    for (int l = 0; quantizer && l < model->config().layers; ++l)
        out.bitsPerValue += quantizer->effectiveBits(LayerIndex{l}, model->config()) / model->config().layers;
    out.notice = choice.notice;
    for (const Selection& layer : choice.selections) // before any eviction an entry's index is its position
        out.kept.emplace_back(layer.keep.begin(), layer.keep.end());
    return out;
}

std::optional<Explanation> Engine::explain(const PolicySpec& spec, LayerIndex layer, HeadIndex head, Position position) const {
    const auto [snapshot, model, threads] = d->held();
    if (!snapshot) return std::nullopt;
    const Scope scope(threads);
    const std::unique_ptr<const Policy> policy = makePolicy(spec);
    if (!snapshot->serves(*policy)) return std::nullopt;
    return snapshot->explain(*policy, makeQuantizer(spec.quant).get(), layer, head, position);
}

std::optional<Explanation> Engine::explain(const PolicySpec& spec, const std::vector<TokenId>& forced, Step step, LayerIndex layer, HeadIndex head,
                                           Position position, std::stop_token stop, const OnProgress& progress) const {
    const auto [snapshot, model, threads] = d->held();
    if (!snapshot) return std::nullopt;
    const Scope scope(threads);
    const std::shared_ptr<const Policy> policy = makePolicy(spec);
    if (!snapshot->serves(*policy)) return std::nullopt;
    const Private::Loaded loaded = d->loaded();
    BranchOptions options;
    options.headroom = static_cast<std::int64_t>(forced.size()) + 1;
    options.recordEvictions = false;
    options.quantizer = d->quantizer(spec.quant, loaded, stop);
    options.explain = {position};
    std::optional<Explanation> last;
    const auto take = [&](Branch& branch) {
        for (Explanation& e : branch.takeExplanations())
            if (e.layer == layer && e.head == head && e.found) last = std::move(e);
    };
    try {
        Branch branch(*model, snapshot, policy, options);
        take(branch);
        ProgressMeter meter(progress, step.value);
        meter.stage("repeating the lane");
        for (int n = 0; n + 1 < step.value && n < static_cast<int>(forced.size()); ++n) { // step 1 is the selection after the prefill
            if (stop.stop_requested()) return std::nullopt;
            branch.feed(std::span(forced).subspan(static_cast<std::size_t>(n), 1), LogitRows::none, true, stop);
            take(branch);
            meter.at(n + 1);
        }
    } catch (const Cancelled&) {
        return std::nullopt;
    }
    return last;
}

std::shared_ptr<const Quantizer> Engine::Private::quantizer(const QuantSpec& spec, const Loaded& loaded, std::stop_token stop) {
    const std::string key = spec.text();
    {
        const std::lock_guard lock(mutex);
        if (const auto found = calibrated.find(key); found != calibrated.end()) return found->second;
    }
    std::shared_ptr<Quantizer> made = makeQuantizer(spec);
    if (!made || !made->wantsCalibration()) return made;
    made->calibrate(calibrationSample(*loaded.model, *loaded.tokenizer, made->calibrationFile(), stop));
    const std::lock_guard lock(mutex);
    if (model == loaded.model) calibrated[key] = made;
    return made;
}

std::shared_ptr<const AttentionMap> Engine::attention(const PromptSpec& prompt, LayerIndex layer, HeadIndex queryHead, std::stop_token stop,
                                                      const OnProgress& progress) {
    const Private::Loaded m = d->loaded();
    const Scope scope(m.threads);
    const ModelConfig& c = m.model->config();
    if (layer.value < 0 || layer.value >= c.layers || queryHead.value < 0 || queryHead.value >= c.queryHeads)
        throw UsageError("attention: expected layer 0 to " + std::to_string(c.layers - 1) + " and query head 0 to " + std::to_string(c.queryHeads - 1) + ", found " +
                         std::to_string(layer.value) + " and " + std::to_string(queryHead.value));
    const std::vector<TokenId> ids = promptIds(*m.tokenizer, m.frame, prompt);
    const auto total = static_cast<std::int64_t>(ids.size());
    checkContext(c, total, "the text");
    if (total > MaxFullResolution)
        throw EngineError("attention: full resolution of " + std::to_string(total) + " tokens would take " + std::to_string(total * total * 4 >> 20) +
                          " MiB; it is offered up to " + std::to_string(MaxFullResolution) + " tokens");

    // Layers above the wanted one are not computed: the observer leaves the pass there.
    struct Reached {};
    struct Observer final : LayerObserver {
        LayerIndex wantedLayer;
        HeadIndex head;
        AttentionMap* map;
        void afterAttention(const LayerView& view, KvCache&) override {
            if (view.layer != wantedLayer) return;
            const auto first = static_cast<std::int64_t>(view.queryPositions[0].item<std::int32_t>());
            const std::int64_t rows = view.queries.size(1), held = view.entries.maxHeld();
            const std::int64_t kvHead = head.value / view.config.groupSize();
            const at::Tensor weights =
                ops::attention_rows(view.queries.narrow(0, head.value, 1), view.keys.narrow(0, kvHead, 1), view.entries.positions.narrow(0, kvHead, 1),
                                    view.entries.lengths.narrow(0, kvHead, 1), view.queryPositions, view.scale)[0].to(at::kCPU).contiguous(); // [rows, C]
            for (std::int64_t r = 0; r < rows; ++r) {
                const float* from = weights.data_ptr<float>() + r * weights.size(1);
                float* to = map->values.data() + (first + r) * map->cols;
                std::copy(from, from + std::min(held, first + r + 1), to); // the rest of the row is the future
            }
            throw Reached{};
        }
    } observer;
    const auto map = std::make_shared<AttentionMap>();
    map->layer = layer;
    map->head = queryHead;
    map->perQueryHead = true;
    map->rowEnd = static_cast<Position>(total);
    map->rows = map->cols = static_cast<std::int32_t>(total);
    map->values.assign(static_cast<std::size_t>(total * total), std::numeric_limits<float>::quiet_NaN());
    observer.wantedLayer = layer;
    observer.head = queryHead;
    observer.map = map.get();
    KvCache cache(c, m.model->dtype(), m.model->device(), RopeMode::original);
    ProgressMeter meter(progress, total);
    meter.stage("attention of layer " + std::to_string(layer.value) + ", query head " + std::to_string(queryHead.value));
    for (std::int64_t done = 0; done < total;) {
        const std::int64_t count = std::min(Snapshot::Block, total - done);
        try {
            m.model->forward(std::span(ids).subspan(static_cast<std::size_t>(done), static_cast<std::size_t>(count)), static_cast<Position>(done), cache, &observer,
                             LogitRows::none, stop);
        } catch (const Reached&) {
        } catch (const Cancelled&) {
            return nullptr;
        }
        done += count;
        meter.at(done);
    }
    return map;
}

LogitsResult Engine::logits(const std::vector<TokenId>& ids, int greedy, std::stop_token stop) {
    const Private::Loaded m = d->loaded();
    const Scope scope(m.threads);
    if (ids.empty()) throw UsageError("logits: expected at least one token id, found none");
    checkContext(m.model->config(), static_cast<std::int64_t>(ids.size()) + greedy, "the sequence");
    KvCache cache(m.model->config(), m.model->dtype(), m.model->device(), RopeMode::original);
    LogitsResult out;
    double nll = 0;
    at::Tensor last;
    constexpr std::size_t Rows = 256;
    for (std::size_t done = 0; done < ids.size();) {
        const std::size_t count = std::min(Rows, ids.size() - done);
        const at::Tensor logits =
            m.model->forward(std::span(ids).subspan(done, count), static_cast<Position>(done), cache, nullptr, LogitRows::all, stop).to(at::kCPU).contiguous();
        const auto vocab = static_cast<std::size_t>(logits.size(1));
        for (std::size_t i = 0; i < count; ++i) {
            const std::span<const float> row(logits.data_ptr<float>() + i * vocab, vocab);
            out.argmax.push_back(argmaxToken(row));
            if (done + i + 1 < ids.size()) nll += negativeLogLikelihood(row, ids[done + i + 1]);
        }
        last = logits[static_cast<std::int64_t>(count) - 1].clone();
        done += count;
    }
    out.nll = ids.size() > 1 ? nll / static_cast<double>(ids.size() - 1) : NotMeasured;
    out.lastLogits.assign(last.data_ptr<float>(), last.data_ptr<float>() + last.numel());
    for (int i = 0; i < greedy; ++i) {
        const TokenId token = argmaxToken({last.data_ptr<float>(), static_cast<std::size_t>(last.numel())});
        out.greedy.push_back(token);
        if (i + 1 < greedy)
            last = m.model->forward(std::span(&token, 1), static_cast<Position>(ids.size() + static_cast<std::size_t>(i)), cache, nullptr, LogitRows::last, stop)
                       .reshape({-1}).to(at::kCPU);
    }
    return out;
}

} // namespace keepsight
