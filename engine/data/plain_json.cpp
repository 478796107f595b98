#include "engine/data/plain_json.h"

namespace keepsight {

namespace {

const char* const budgetKinds[] = {"ratio", "tokens"};
const char* const ropeKinds[] = {"none", "linear", "llama3"};

// Every field once, for both directions: `visit(key, member)`.
template <class Run, class Visit>
void eachField(Run& run, const Visit& visit) requires std::is_same_v<std::remove_const_t<Run>, RunInfo> {
    visit("kind", run.kind);
    visit("command_line", run.commandLine);
    visit("job", run.jobJson);
    visit("tool_version", run.toolVersion);
    visit("torch_version", run.torchVersion);
    visit("created_utc", run.createdUtc);
    visit("device", run.device);
    visit("dtype", run.dtype);
    visit("threads", run.threads);
    visit("seed", run.seed);
    visit("finished", run.finished);
    visit("cancelled", run.cancelled);
    visit("failure", run.failure);
}

template <class Config, class Visit>
void eachField(Config& config, const Visit& visit) requires std::is_same_v<std::remove_const_t<Config>, ModelConfig> {
    visit("architecture", config.architecture);
    visit("name", config.name);
    visit("layers", config.layers);
    visit("query_heads", config.queryHeads);
    visit("kv_heads", config.kvHeads);
    visit("head_dim", config.headDim);
    visit("hidden", config.hidden);
    visit("feed_forward", config.feedForward);
    visit("vocab", config.vocab);
    visit("max_positions", config.maxPositions);
    visit("rope_theta", config.ropeTheta);
    visit("norm_eps", config.normEps);
    visit("rope_factors", config.ropeFactors);
    visit("tied_embeddings", config.tiedEmbeddings);
    visit("attention_bias", config.attentionBias);
    visit("mlp_bias", config.mlpBias);
    visit("sliding_window", config.slidingWindow);
}

template <class Scaling, class Visit>
void eachField(Scaling& scaling, const Visit& visit) requires std::is_same_v<std::remove_const_t<Scaling>, RopeScaling> {
    visit("factor", scaling.factor);
    visit("low_freq_factor", scaling.lowFreqFactor);
    visit("high_freq_factor", scaling.highFreqFactor);
    visit("original_max_positions", scaling.originalMaxPositions);
}

template <class Model, class Visit>
void eachField(Model& model, const Visit& visit) requires std::is_same_v<std::remove_const_t<Model>, ModelInfo> {
    visit("path", model.path);
    visit("sha256", model.sha256);
    visit("format", model.format);
    visit("weight_types", model.weightTypes);
    visit("tokenizer", model.tokenizer);
    visit("chat_template", model.chatTemplate);
    visit("dtype", model.dtype);
    visit("device", model.device);
    visit("parameters", model.parameters);
    visit("weight_bytes", model.weightBytes);
    visit("kv_bytes_per_token", model.kvBytesPerToken);
}

template <class T>
OrderedJson written(const T& record) {
    OrderedJson out = OrderedJson::object();
    eachField(record, [&](const char* key, const auto& member) {
        if constexpr (std::is_same_v<std::decay_t<decltype(member)>, std::string>)
            out[key] = jsonOfBytes(member);
        else
            out[key] = member;
    });
    return out;
}

template <class T>
void readInto(StrictObject& object, T& record) {
    eachField(record, [&](const char* key, auto& member) { object.read(key, member); });
}

OrderedJson jsonOfReal(double value) {
    if (std::isfinite(value)) return value;
    return {{"real", std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf"}};
}

double realOfJson(const OrderedJson& value, const std::string& what) {
    if (value.is_number_float()) return value.get<double>();
    const std::string text =
        value.is_object() && value.contains("real") && value["real"].is_string() ? value["real"].get<std::string>() : "";
    if (text == "nan") return NotMeasured;
    if (text == "inf") return std::numeric_limits<double>::infinity();
    if (text == "-inf") return -std::numeric_limits<double>::infinity();
    throw EngineError(what + ": expected a real number");
}

struct FieldWriter {
    OrderedJson operator()(std::monostate) const { return nullptr; }
    OrderedJson operator()(bool value) const { return value; }
    OrderedJson operator()(std::int64_t value) const { return value; }
    OrderedJson operator()(double value) const { return jsonOfReal(value); }
    OrderedJson operator()(const std::string& value) const { return jsonOfBytes(value); }
    OrderedJson operator()(const std::vector<double>& values) const {
        OrderedJson out = OrderedJson::array();
        for (const double value : values)
            out.push_back(jsonOfReal(value));
        return out;
    }
};

} // namespace

namespace {

OrderedJson paramsToJson(const std::map<std::string, std::string>& params) {
    OrderedJson out = OrderedJson::object();
    for (const auto& [key, value] : params)
        out[key] = jsonOfBytes(value);
    return out;
}

void readParams(StrictObject& object, std::map<std::string, std::string>& out) {
    const OrderedJson* params = object.take("params");
    if (!params) return;
    if (!params->is_object()) throw EngineError(object.path("params") + ": expected an object");
    for (const auto& [key, param] : params->items())
        StrictObject::convert(param, out[key], object.path("params") + "." + key);
}

} // namespace

OrderedJson policyToJson(const PolicySpec& policy) {
    OrderedJson budget = {{"kind", budgetKinds[static_cast<int>(policy.budget.kind)]}};
    budget["compression_ratio"] = policy.budget.compressionRatio;
    budget["tokens"] = policy.budget.tokens;
    OrderedJson out = {{"id", jsonOfBytes(policy.id)}, {"params", paramsToJson(policy.params)}, {"budget", budget}};
    if (policy.quant != QuantSpec()) out["quant"] = {{"id", jsonOfBytes(policy.quant.id)}, {"params", paramsToJson(policy.quant.params)}};
    return out;
}

PolicySpec policyFromJson(const OrderedJson& value, const std::string& what) {
    StrictObject object(value, what);
    PolicySpec policy;
    object.read("id", policy.id);
    readParams(object, policy.params);
    if (const OrderedJson* quant = object.take("quant")) {
        StrictObject inner(*quant, what + ".quant");
        inner.read("id", policy.quant.id);
        readParams(inner, policy.quant.params);
        inner.finish();
    }
    if (const OrderedJson* budget = object.take("budget")) {
        StrictObject inner(*budget, what + ".budget");
        if (const OrderedJson* kind = inner.take("kind"))
            policy.budget.kind = enumOfJson<Budget::Kind>(*kind, budgetKinds, inner.path("kind"));
        inner.read("compression_ratio", policy.budget.compressionRatio);
        inner.read("tokens", policy.budget.tokens);
        inner.finish();
    }
    object.finish();
    return policy;
}

OrderedJson runToJson(const RunInfo& run) { return written(run); }

RunInfo runFromJson(const OrderedJson& value, const std::string& what) {
    StrictObject object(value, what);
    RunInfo run;
    readInto(object, run);
    object.finish();
    return run;
}

OrderedJson modelToJson(const ModelInfo& model) {
    OrderedJson out = written(model);
    out["config"] = written(model.config);
    OrderedJson scaling = written(model.config.ropeScaling);
    scaling["kind"] = ropeKinds[static_cast<int>(model.config.ropeScaling.kind)];
    out["config"]["rope_scaling"] = scaling;
    return out;
}

ModelInfo modelFromJson(const OrderedJson& value, const std::string& what) {
    StrictObject object(value, what);
    ModelInfo model;
    readInto(object, model);
    if (const OrderedJson* config = object.take("config")) {
        StrictObject inner(*config, object.path("config"));
        readInto(inner, model.config);
        if (const OrderedJson* scaling = inner.take("rope_scaling")) {
            StrictObject rope(*scaling, inner.path("rope_scaling"));
            readInto(rope, model.config.ropeScaling);
            if (const OrderedJson* kind = rope.take("kind"))
                model.config.ropeScaling.kind = enumOfJson<RopeScaling::Kind>(*kind, ropeKinds, rope.path("kind"));
            rope.finish();
        }
        inner.finish();
    }
    object.finish();
    return model;
}

OrderedJson fieldsToJson(const Measurement& measurement) {
    OrderedJson out = OrderedJson::array();
    for (const auto& [name, value] : measurement.fields)
        out.push_back(OrderedJson::array({jsonOfBytes(name), std::visit(FieldWriter(), value)}));
    return out;
}

void fieldsFromJson(const OrderedJson& value, Measurement& out, const std::string& what) {
    if (!value.is_array()) throw EngineError(what + ": expected an array of fields");
    for (const OrderedJson& field : value) {
        if (!field.is_array() || field.size() != 2) throw EngineError(what + ": a field is not a pair of name and value");
        const std::string name = bytesOfJson(field[0], what);
        const OrderedJson& content = field[1];
        Measurement::Value read;
        if (content.is_boolean())
            read = content.get<bool>();
        else if (content.is_number_unsigned() &&
                 content.get<std::uint64_t>() > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
            throw EngineError(what + ": field '" + name + "' does not fit 64 bits");
        else if (content.is_number_integer())
            read = content.get<std::int64_t>();
        else if (content.is_number_float() || (content.is_object() && content.contains("real")))
            read = realOfJson(content, what + "." + name);
        else if (content.is_array()) {
            std::vector<double> numbers;
            for (const OrderedJson& item : content)
                numbers.push_back(realOfJson(item, what + "." + name));
            read = std::move(numbers);
        } else if (!content.is_null())
            read = bytesOfJson(content, what + "." + name);
        out.fields.emplace_back(name, std::move(read));
    }
}

} // namespace keepsight
