// config.json, generation_config.json and tokenizer files of Hugging Face directories.
#include "engine/model/config_reader.h"
#include "tests/engine/weights/model_files.h"

#include <nlohmann/json.hpp>

using namespace keepsight;
using namespace keepsight::test;
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

json smallConfig() {
    return {{"model_type", "llama"},   {"hidden_size", 32}, {"num_hidden_layers", 1}, {"num_attention_heads", 4},
            {"intermediate_size", 64}, {"vocab_size", 8},   {"rms_norm_eps", 1e-5},   {"max_position_embeddings", 64}};
}

} // namespace

class ConfigTest : public QObject {
    Q_OBJECT

private Q_SLOTS:
    void init() {
        m_folder = std::make_unique<QTemporaryDir>();
        m_root = m_folder->path().toStdString();
    }

    void fillsDefaults() {
        const ModelConfig c = read(smallConfig());
        QCOMPARE(c.architecture, std::string("llama"));
        QCOMPARE(c.kvHeads, 4);
        QCOMPARE(c.headDim, 8);
        QCOMPARE(c.ropeTheta, 10000.0);
        QCOMPARE(c.normEps, 1e-5);
        QVERIFY(!c.tiedEmbeddings && !c.attentionBias && !c.mlpBias);
        QVERIFY(c.ropeScaling.kind == RopeScaling::Kind::none);
        json with = smallConfig();
        with.update(json{
            {"head_dim", 16}, {"num_key_value_heads", 2}, {"tie_word_embeddings", true}, {"rope_theta", 5e5}, {"rope_scaling", nullptr}});
        const ModelConfig d = read(with);
        QCOMPARE(d.headDim, 16);
        QCOMPARE(d.kvHeads, 2);
        QCOMPARE(d.ropeTheta, 5e5);
        QVERIFY(d.tiedEmbeddings);
    }

    void readsRelatives() {
        json mistral = smallConfig();
        mistral.update(json{{"model_type", "mistral"}, {"sliding_window", nullptr}});
        QCOMPARE(read(mistral).architecture, std::string("llama"));
        mistral["sliding_window"] = 64; // as long as the context: plain
        QCOMPARE(read(mistral).architecture, std::string("llama"));
        mistral["sliding_window"] = 32;
        VERIFY_REFUSED(read(mistral), "sliding_window 32 is shorter than the context");
        json qwen = smallConfig();
        qwen.update(json{{"model_type", "qwen2"}, {"use_sliding_window", false}, {"sliding_window", 32}});
        QVERIFY(read(qwen).attentionBias);
        qwen["use_sliding_window"] = true;
        VERIFY_REFUSED(read(qwen), "sliding-window models are not supported");
    }

    void readsRopeSpellings() {
        json llama3 = {{"factor", 8.0}, {"low_freq_factor", 1.0}, {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 32}};
        for (const char* object : {"rope_scaling", "rope_parameters"})
            for (const char* type : {"rope_type", "type"}) {
                json config = smallConfig();
                config[object] = llama3;
                config[object][type] = "llama3";
                const RopeScaling s = read(config).ropeScaling;
                QVERIFY(s.kind == RopeScaling::Kind::llama3);
                QCOMPARE(s.factor, 8.0);
                QCOMPARE(s.highFreqFactor, 4.0);
                QCOMPARE(s.originalMaxPositions, 32);
                config[object] = {{type, "linear"}, {"factor", 2}};
                QVERIFY(read(config).ropeScaling.kind == RopeScaling::Kind::linear);
                QCOMPARE(read(config).ropeScaling.factor, 2.0);
                config[object] = {{type, "default"}, {"rope_theta", 1e6}};
                QCOMPARE(read(config).ropeTheta, 1e6);
                QVERIFY(read(config).ropeScaling.kind == RopeScaling::Kind::none);
            }
    }

    void refuses_data() {
        QTest::addColumn<QByteArray>("patch");
        QTest::addColumn<QString>("sentence");
        const auto row = [](const char* name, const json& patch, const char* sentence) {
            QTest::newRow(name) << QByteArray::fromStdString(patch.dump()) << QString::fromUtf8(sentence);
        };
        row("architecture", {{"model_type", "mamba"}}, "architecture 'mamba' is not supported; supported are llama, mistral");
        row("no architecture", {{"model_type", nullptr}}, "'model_type' is missing");
        row("no layers", {{"num_hidden_layers", nullptr}}, "'num_hidden_layers' is missing");
        row("layers as text", {{"num_hidden_layers", "1"}}, "should be a 32-bit integer");
        row("layers as a float", {{"num_hidden_layers", 1.5}}, "should be a 32-bit integer");
        row("layers beyond 32 bits", {{"num_hidden_layers", 1ull << 40}}, "should be a 32-bit integer");
        row("no layer", {{"num_hidden_layers", 0}}, "number of layers should be 1 to");
        row("negative", {{"hidden_size", -32}}, "head size should be 1 to");
        row("no head", {{"num_attention_heads", 0}}, "query heads should be 1 to");
        row("uneven groups", {{"num_key_value_heads", 3}}, "cannot share 3 KV heads");
        row("uneven heads", {{"num_attention_heads", 5}}, "no multiple of 5 heads");
        row("odd head", {{"head_dim", 7}}, "head size 7 is odd");
        row("huge vocabulary", {{"vocab_size", 1 << 30}}, "vocabulary size should be");
        row("epsilon 0", {{"rms_norm_eps", 0.0}}, "epsilon should be above 0");
        row("theta as text", {{"rope_theta", "1e4"}}, "'rope_theta' should be a number");
        row("flag as number", {{"tie_word_embeddings", 1}}, "should be true or false");
        row("activation", {{"hidden_act", "gelu"}}, "hidden_act 'gelu' is not supported");
        row("quantized", {{"quantization_config", {{"quant_method", "gptq"}}}}, "weights quantized by 'gptq'");
        row("yarn", {{"rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}}}},
            "type 'yarn' is not supported; supported are default, linear, llama3");
        row("dynamic", {{"rope_scaling", {{"type", "dynamic"}, {"factor", 4.0}}}}, "type 'dynamic'");
        row("no factor", {{"rope_scaling", {{"type", "linear"}}}}, "'factor' is missing");
        row("factor 0", {{"rope_scaling", {{"type", "linear"}, {"factor", 0}}}}, "factor should be at least 1");
        row("llama3 without frequencies", {{"rope_scaling", {{"type", "llama3"}, {"factor", 2}}}}, "'low_freq_factor' is missing");
        row("rope as list", {{"rope_scaling", {1}}}, "expected a JSON object");
        row("partial rotation", {{"partial_rotary_factor", 0.5}}, "partial_rotary_factor must be 1");
    }
    void refuses() {
        QFETCH(QByteArray, patch);
        QFETCH(QString, sentence);
        json config = smallConfig();
        config.update(json::parse(patch.toStdString()));
        VERIFY_REFUSED(read(config), sentence.toUtf8().constData());
    }

    void refusesDamagedJson() {
        write(m_root / "config.json", "{\"a\":1,\"a\":2}");
        VERIFY_REFUSED(readConfig(m_root / "config.json"), "key 'a' occurs twice");
        write(m_root / "config.json", std::string(17 << 20, ' '));
        VERIFY_REFUSED(readConfig(m_root / "config.json"), "at most 16777216 are read");
        write(m_root / "config.json", "");
        VERIFY_REFUSED(readConfig(m_root / "config.json"), "not valid JSON");
        write(m_root / "config.json", "[]");
        VERIFY_REFUSED(readConfig(m_root / "config.json"), "expected a JSON object");
        VERIFY_REFUSED(readConfig(m_root / "absent.json"), "No such file");
    }

    void readsStopTokens() {
        write(m_root / "config.json", R"({"eos_token_id":5})");
        QCOMPARE(readStopTokens(m_root), std::vector<std::int32_t>{5});
        write(m_root / "generation_config.json", R"({"eos_token_id":[7,8]})");
        QCOMPARE(readStopTokens(m_root), (std::vector<std::int32_t>{7, 8}));
        write(m_root / "generation_config.json", R"({"eos_token_id":["x"]})");
        VERIFY_REFUSED(readStopTokens(m_root), "should be token ids");
        write(m_root / "generation_config.json", "{}");
        QCOMPARE(readStopTokens(m_root), std::vector<std::int32_t>{5});
    }

    void readsTokenizerSource() {
        QVERIFY(readTokenizerSource(m_root).kind == TokenizerSource::Kind::none);
        write(m_root / "tokenizer.model", "x");
        write(m_root / "config.json", R"({"bos_token_id":1,"eos_token_id":[2,3]})");
        TokenizerSource s = readTokenizerSource(m_root);
        QVERIFY(s.kind == TokenizerSource::Kind::sentencepiece && s.addBos);
        QCOMPARE(s.bos, 1);
        QCOMPARE(s.eos, 2);
        write(m_root / "tokenizer.json", "{}");
        write(m_root / "tokenizer_config.json", R"({"add_bos_token":true,"chat_template":"{{x}}"})");
        s = readTokenizerSource(m_root);
        QVERIFY(s.kind == TokenizerSource::Kind::tokenizerJson && s.addBos);
        QCOMPARE(s.path.filename().string(), std::string("tokenizer.json"));
        QCOMPARE(s.chatTemplate, std::string("{{x}}"));
        write(m_root / "tokenizer_config.json", R"({"chat_template":[{"name":"rag","template":"r"},{"name":"default","template":"d"}]})");
        QCOMPARE(readTokenizerSource(m_root).chatTemplate, std::string("d"));
        write(m_root / "chat_template.jinja", "file");
        QCOMPARE(readTokenizerSource(m_root).chatTemplate, std::string("file"));
    }

private:
    ModelConfig read(const json& config) {
        write(m_root / "config.json", config.dump());
        return readConfig(m_root / "config.json");
    }

    std::unique_ptr<QTemporaryDir> m_folder;
    fs::path m_root;
};

QTEST_APPLESS_MAIN(ConfigTest)
#include "config_test.moc"
