// Ids against the Hugging Face library's (tests/golden/make_tokenizer.py), bytes, refusals and size.
#include "engine/data/error.h"
#include "engine/tokenizer/tokenizer.h"

#include <QTemporaryDir>
#include <QtTest>

#include <nlohmann/json.hpp>

#include <chrono>
#include <fstream>

using namespace keepsight;
using Json = nlohmann::json;

namespace {

Json readJson(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return Json::parse(file);
}
Json golden(const std::string& name) { return readJson(std::string(KEEPSIGHT_GOLDEN) + "/tokenizer_" + name + ".json"); }

std::filesystem::path defaultModel() { return std::string(KEEPSIGHT_BUILD) + "/models/SmolLM2-135M-Instruct.Q4_1.gguf"; }

TokenizerSource jsonSource(const std::filesystem::path& path) {
    TokenizerSource source;
    source.kind = TokenizerSource::Kind::tokenizerJson;
    source.path = path;
    return source;
}
std::filesystem::path smallTokenizer(const std::string& name) {
    return std::string(KEEPSIGHT_GOLDEN) + "/tokenizer_" + name + ".tokenizer.json";
}

std::unique_ptr<Tokenizer> tokenizerFor(const std::string& name) {
    return name == "smollm" ? makeTokenizer(openWeights(defaultModel())->tokenizer()) : makeTokenizer(jsonSource(smallTokenizer(name)));
}

// The GGUF metadata a converter would write for one of the small tokenizers.
TokenizerSource asGguf(const std::string& name, const std::string& pre) {
    const Json root = readJson(smallTokenizer(name));
    TokenizerSource source;
    source.kind = TokenizerSource::Kind::gguf;
    source.ggmlModel = "gpt2";
    source.ggmlPre = pre;
    const auto put = [&](const std::string& text, std::size_t id, int type) {
        if (source.tokens.size() <= id) {
            source.tokens.resize(id + 1);
            source.types.resize(id + 1, 5);
        }
        source.tokens[id] = text;
        source.types[id] = type;
    };
    for (const auto& [text, id] : root["model"]["vocab"].items())
        put(text, id, 1);
    for (const Json& token : root["added_tokens"])
        put(token["content"], token["id"], token["special"] ? 3 : 4);
    for (const Json& merge : root["model"]["merges"])
        source.merges.push_back(merge.is_string() ? merge.get<std::string>()
                                                  : merge[0].get<std::string>() + " " + merge[1].get<std::string>());
    return source;
}

QByteArray show(const std::vector<TokenId>& ids) { return QByteArray::fromStdString(Json(ids).dump()); }

void compareCases(const Tokenizer& tokenizer, const Json& data) {
    for (const Json& row : data["cases"]) {
        const auto text = row[0].get<std::string>();
        const auto parsed = row[1].get<std::vector<TokenId>>();
        const auto plain = row.size() > 2 ? row[2].get<std::vector<TokenId>>() : parsed;
        const auto what = "of " + QByteArray::fromStdString(row[0].dump()) + ": ";
        QVERIFY2(tokenizer.encode(text, {.parseSpecial = true}) == parsed,
                 "ids " + what + show(tokenizer.encode(text, {.parseSpecial = true})) + " expected " + show(parsed));
        QVERIFY2(tokenizer.encode(text) == plain, "plain ids " + what + show(tokenizer.encode(text)) + " expected " + show(plain));
    }
}

Json minimalJson() {
    return Json::parse(
        R"({"added_tokens":[],"normalizer":null,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"use_regex":true},
        "post_processor":null,"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}})");
}

} // namespace

class TokenizerTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void idsEqualHuggingFace_data() {
        QTest::addColumn<QString>("name");
        for (const char* name : {"smollm", "gpt2", "llama3", "qwen2"})
            QTest::newRow(name) << name;
    }
    void idsEqualHuggingFace() {
        QFETCH(QString, name);
        const auto tokenizer = tokenizerFor(name.toStdString());
        const Json data = golden(name.toStdString());
        QVERIFY(data["cases"].size() > 700);
        compareCases(*tokenizer, data);
        const auto framed = data["framed"][1].get<std::vector<TokenId>>();
        QCOMPARE(tokenizer->encode(data["framed"][0].get<std::string>(), {.parseSpecial = true, .addSpecial = true}), framed);
    }

    void ggufMetadataGivesTheSameIds_data() {
        QTest::addColumn<QString>("name");
        QTest::addColumn<QString>("pre");
        QTest::newRow("Llama 3") << "llama3"
                                 << "llama-bpe";
        QTest::newRow("Qwen 2 with NFC") << "qwen2"
                                         << "qwen2";
    }
    void ggufMetadataGivesTheSameIds() {
        QFETCH(QString, name);
        QFETCH(QString, pre);
        Json data = golden(name.toStdString());
        if (name == "qwen2") // GGUF does not say which added tokens are searched after normalising
            std::erase_if(data["cases"].get_ref<Json::array_t&>(),
                          [](const Json& row) { return row[0].get<std::string>().find("Zo") != std::string::npos; });
        compareCases(*makeTokenizer(asGguf(name.toStdString(), pre.toStdString())), data);
    }

    void decodingGivesTheTextBack_data() {
        QTest::addColumn<QString>("name");
        QTest::newRow("default model, but for bytes it has no token for") << "smollm";
        QTest::newRow("Llama 3") << "llama3";
    }
    void decodingGivesTheTextBack() {
        QFETCH(QString, name);
        const auto tokenizer = tokenizerFor(name.toStdString());
        const Json data = golden(name.toStdString());
        std::string missing;
        for (const Json& byte : data.value("missingBytes", Json::array()))
            missing += static_cast<char>(byte.get<unsigned char>());
        std::size_t compared = 0;
        for (const Json& row : data["cases"]) {
            auto text = row[0].get<std::string>();
            std::erase_if(text, [&](char c) { return missing.find(c) != std::string::npos; });
            const auto whole = row[0].get<std::string>();
            const auto decoded = tokenizer->decode(tokenizer->encode(whole, {.parseSpecial = true}));
            QVERIFY2(decoded == text, QByteArray::fromStdString(row[0].dump()));
            compared += whole == text;
        }
        QVERIFY(compared > data["cases"].size() * 3 / 4);
    }

    void defaultModelDescribesItself() {
        const auto tokenizer = tokenizerFor("smollm");
        QCOMPARE(tokenizer->describe(), std::string("byte-level BPE, pre-tokenizer smollm, 49152 tokens"));
        QCOMPARE(tokenizer->vocab(), 49152);
        QCOMPARE(tokenizer->bos(), 1);
        QCOMPARE(tokenizer->eos(), 2);
        QVERIFY(tokenizer->isSpecial(2));
        QVERIFY(!tokenizer->isSpecial(17));
        QCOMPARE(tokenizer->bytes(2), std::string("<|im_end|>"));
        QVERIFY_THROWS_EXCEPTION(EngineError, tokenizer->bytes(49152));
        QVERIFY_THROWS_EXCEPTION(EngineError, tokenizer->bytes(-1));
        QVERIFY_THROWS_EXCEPTION(EngineError, tokenizer->encode("broken \xC3( text"));
    }

    void chatFramesGiveWhatTheTemplatesGive_data() {
        QTest::addColumn<int>("row");
        QTest::newRow("default model") << 0;
        QTest::newRow("Llama 3") << 1;
        QTest::newRow("ChatML") << 2;
    }
    void chatFramesGiveWhatTheTemplatesGive() {
        QFETCH(int, row);
        const Json data = golden("smollm")["frames"][row];
        const ChatFrame frame = chatFrameFor(data[1].get<std::string>());
        QCOMPARE(frame.name, data[0].get<std::string>());
        QCOMPARE(frame.wrap("Which lamp is lit?"), data[2].get<std::string>());
        QVERIFY(frame.userBefore.find(frame.system) != std::string::npos && !frame.stops.empty());
    }
    void theDefaultModelHasAFrameAndUnknownTemplatesHaveNone() {
        const ChatFrame frame = chatFrameFor(openWeights(defaultModel())->tokenizer().chatTemplate);
        QCOMPARE(frame.name, std::string("smollm2-instruct"));
        QVERIFY(frame.system.size() > 20);
        QCOMPARE(frame.stops, std::vector<std::string>{"<|im_end|>"});
        QCOMPARE(chatFrameFor("{{ messages }}").name, std::string());
        QCOMPARE(chatFrameFor("").wrap("as it is"), std::string("as it is"));
    }

    void addedTokenIdsOutsideTheModelWork() {
        const auto tokenizer = tokenizerFor("gpt2");
        const auto mask = tokenizer->encode("<mask>");
        QCOMPARE(mask.size(), std::size_t(1));
        QCOMPARE(tokenizer->bytes(mask[0]), std::string("<mask>"));
        QVERIFY(!tokenizer->isSpecial(mask[0]));
    }

    void unsupportedPartsAreRefusedByName_data() {
        QTest::addColumn<QByteArray>("change"); // JSON merge patch
        QTest::addColumn<QByteArray>("said");
        QTest::newRow("model") << QByteArray(R"({"model":{"type":"WordPiece"}})") << QByteArray("WordPiece");
        QTest::newRow("byte fallback") << QByteArray(R"({"model":{"byte_fallback":true}})") << QByteArray("byte_fallback");
        QTest::newRow("suffix") << QByteArray(R"({"model":{"end_of_word_suffix":"</w>"}})") << QByteArray("end_of_word_suffix");
        QTest::newRow("normalizer") << QByteArray(R"({"normalizer":{"type":"Lowercase"}})") << QByteArray("Lowercase");
        QTest::newRow("pre-tokenizer") << QByteArray(R"({"pre_tokenizer":{"type":"Metaspace"}})") << QByteArray("Metaspace");
        QTest::newRow("no pre-tokenizer") << QByteArray(R"({"pre_tokenizer":null})") << QByteArray("ByteLevel");
        QTest::newRow("expression") << QByteArray(
                                           R"({"pre_tokenizer":{"type":"Split","behavior":"Isolated","pattern":{"Regex":"\\w+|x"}}})")
                                    << QByteArray("\\w+|x");
        QTest::newRow("behavior") << QByteArray(R"({"pre_tokenizer":{"type":"Split","behavior":"Removed","pattern":{"String":" "}}})")
                                  << QByteArray("Removed");
        QTest::newRow("decoder") << QByteArray(R"({"decoder":{"type":"WordPiece"}})") << QByteArray("decoder WordPiece");
        QTest::newRow("post-processor") << QByteArray(R"({"post_processor":{"type":"BertProcessing"}})") << QByteArray("BertProcessing");
        QTest::newRow("merge out of vocabulary") << QByteArray(R"({"model":{"merges":["a c"]}})") << QByteArray("merge 0");
        QTest::newRow("merge of one part") << QByteArray(R"({"model":{"merges":["ab"]}})") << QByteArray("merge 0");
        QTest::newRow("huge id") << QByteArray(R"({"model":{"vocab":{"z":2000000000}}})") << QByteArray("2000000000");
        QTest::newRow("negative id") << QByteArray(R"({"added_tokens":[{"id":-5,"content":"x"}]})") << QByteArray("-5");
        QTest::newRow("vocab of the wrong type") << QByteArray(R"({"model":{"vocab":"many"}})") << QByteArray("malformed");
        QTest::newRow("no model") << QByteArray(R"({"model":null})") << QByteArray("model");
    }
    void unsupportedPartsAreRefusedByName() {
        QFETCH(QByteArray, change);
        QFETCH(QByteArray, said);
        QTemporaryDir folder;
        const std::filesystem::path path = folder.filePath("tokenizer.json").toStdString();
        Json root = minimalJson();
        std::ofstream(path) << root;
        QCOMPARE(makeTokenizer(jsonSource(path))->encode("aba"), (std::vector<TokenId>{2, 0})); // as it is, it works
        root.merge_patch(Json::parse(change.toStdString()));
        std::ofstream(path) << root;
        try {
            makeTokenizer(jsonSource(path));
            QFAIL("accepted");
        } catch (const EngineError& e) {
            QVERIFY2(std::string(e.what()).find(said.toStdString()) != std::string::npos, e.what());
        }
    }

    void otherKindsAreRefusedByName_data() {
        QTest::addColumn<int>("kind");
        QTest::addColumn<QString>("model");
        QTest::addColumn<QString>("pre");
        QTest::addColumn<QByteArray>("said");
        QTest::newRow("SentencePiece") << int(TokenizerSource::Kind::sentencepiece) << ""
                                       << "" << QByteArray("SentencePiece");
        QTest::newRow("GGUF of SentencePiece") << int(TokenizerSource::Kind::gguf) << "llama"
                                               << "" << QByteArray("'llama'");
        QTest::newRow("GGUF split") << int(TokenizerSource::Kind::gguf) << "gpt2"
                                    << "deepseek-llm" << QByteArray("deepseek-llm");
        QTest::newRow("none") << int(TokenizerSource::Kind::none) << ""
                              << "" << QByteArray("found none");
    }
    void otherKindsAreRefusedByName() {
        QFETCH(int, kind);
        QFETCH(QString, model);
        QFETCH(QString, pre);
        QFETCH(QByteArray, said);
        TokenizerSource source;
        source.kind = TokenizerSource::Kind(kind);
        source.ggmlModel = model.toStdString();
        source.ggmlPre = pre.toStdString();
        source.tokens = {"a"};
        try {
            makeTokenizer(source);
            QFAIL("accepted");
        } catch (const EngineError& e) {
            QVERIFY2(std::string(e.what()).find(said.toStdString()) != std::string::npos, e.what());
        }
    }

    // A quadratic merge would take minutes for the long word; the bounds are far from the real times so that a busy machine passes.
    void longTextsAreFast() {
        const auto tokenizer = tokenizerFor("smollm");
        std::ifstream file(std::string(KEEPSIGHT_RESOURCES) + "/texts/harbour_long.txt", std::ios::binary);
        const std::string prose{std::istreambuf_iterator<char>(file), {}};
        QVERIFY(prose.size() > 10000);
        double best = 1e9;
        for (int i = 0; i < 5; ++i) {
            const auto start = std::chrono::steady_clock::now();
            QVERIFY(tokenizer->encode(prose).size() > 4000);
            best = std::min(best, std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
        }
        qInfo("%zu bytes of prose: %.2f ms", prose.size(), best);
        QVERIFY2(best < 40, "encoding 4000 tokens took longer than 40 ms");
        const auto start = std::chrono::steady_clock::now();
        const auto ids = tokenizer->encode(std::string(2'000'000, 'a'));
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        qInfo("2 MB of one letter: %.2f s", seconds);
        QCOMPARE(tokenizer->decode(ids), std::string(2'000'000, 'a'));
        QVERIFY(seconds < 20);
    }
};

QTEST_APPLESS_MAIN(TokenizerTest)
#include "tokenizer_test.moc"
