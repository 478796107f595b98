// Every rule of the safetensors reader, each broken once; shards, links and the hash.
#include "tests/engine/weights/model_files.h"

#include <nlohmann/json.hpp>

using namespace keepsight;
using namespace keepsight::test;
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

json smallConfig() {
    return {{"model_type", "llama"},    {"hidden_size", 32},       {"num_hidden_layers", 1}, {"num_attention_heads", 2},
            {"num_key_value_heads", 1}, {"intermediate_size", 64}, {"vocab_size", 8},        {"max_position_embeddings", 64}};
}

json smallHeader() {
    return {{"__metadata__", {{"format", "pt"}}},
            {"a", {{"dtype", "F32"}, {"shape", {2, 3}}, {"data_offsets", {0, 24}}}},
            {"b", {{"dtype", "BF16"}, {"shape", {4}}, {"data_offsets", {24, 32}}}},
            {"c", {{"dtype", "F16"}, {"shape", json::array()}, {"data_offsets", {32, 34}}}}};
}

} // namespace

class SafetensorsTest : public QObject {
    Q_OBJECT

private Q_SLOTS:
    void init() {
        m_folder = std::make_unique<QTemporaryDir>();
        m_root = m_folder->path().toStdString();
        write(m_root / "config.json", smallConfig().dump());
    }

    void readsOneFile() {
        put(smallHeader().dump() + "   ", 34); // writers pad the header with spaces
        const auto file = openWeights(m_root);
        QCOMPARE(file->format(), std::string("safetensors"));
        QCOMPARE(file->files().size(), std::size_t(1));
        QCOMPARE(file->tensors().size(), std::size_t(3));
        QCOMPARE(file->tensor("a", {2, 3}).bytes.size(), std::size_t(24));
        QVERIFY(file->tensor("b", {4}).type == WeightType::bf16);
        QVERIFY(file->tensor("c", {}).type == WeightType::f16);
        QCOMPARE(file->tensor("b", {4}).bytes.data() - file->tensor("a", {2, 3}).bytes.data(), std::ptrdiff_t(24));
        VERIFY_REFUSED(file->tensor("a", {3, 2}), "'a' is 2×3, the config says 3×2");
        VERIFY_REFUSED(file->tensor("d", {1}), "'d' (1) is missing");
    }

    void refuses_data() {
        QTest::addColumn<QByteArray>("header");
        QTest::addColumn<int>("bytes");
        QTest::addColumn<QString>("sentence");
        const auto row = [](const char* name, const std::string& header, int bytes, const char* sentence) {
            QTest::newRow(name) << QByteArray::fromStdString(header) << bytes << QString::fromUtf8(sentence);
        };
        const auto changed = [](const char* pointer, const json& value) {
            json header = smallHeader();
            header[json::json_pointer(pointer)] = value;
            return header.dump();
        };
        const std::string entry = R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
        row("does not start with a brace", " " + smallHeader().dump(), 34, "should start with '{'");
        row("an array", "[]", 0, "should start with '{'");
        row("empty header", "", 0, "should start with '{'");
        row("broken JSON", "{\"a\":", 0, "not valid JSON at byte");
        row("text after the object", "{} {}", 0, "not valid JSON");
        row("not UTF-8", "{\"\xff\":1}", 0, "not valid JSON");
        row("comment", "{/* a */}", 0, "not valid JSON");
        row("NaN", "{\"a\":NaN}", 0, "not valid JSON");
        row("duplicate tensor", "{" + entry + "," + entry + "}", 4, "key 'a' occurs twice");
        row("duplicate inner key", R"({"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4,
            "key 'dtype' occurs twice");
        row("nested too deep", "{\"a\":" + std::string(40, '[') + std::string(40, ']') + "}", 0, "nested deeper than 16");
        row("integer beyond 64 bits", changed("/a/shape", {2, 3}).replace(smallHeader().dump().find("[2,3]"), 5, "[99999999999999999999]"),
            34, "does not fit into 64 bits");
        row("fractional size", changed("/a/shape", {2.0, 3.0}), 34, "whole number from 0");
        row("negative size", changed("/a/shape", {-2, -3}), 34, "whole number from 0");
        row("negative offset", changed("/a/data_offsets", {-1, 23}), 34, "whole number from 0");
        row("text offset", changed("/a/data_offsets", {"0", "24"}), 34, "whole number from 0");
        row("one offset", changed("/a/data_offsets", {0}), 34, "list of two offsets");
        row("no offsets", changed("/a", {{"dtype", "F32"}, {"shape", {1}}}), 34, "exactly dtype, shape and data_offsets");
        row("extra field", changed("/a/more", 1), 34, "exactly dtype, shape and data_offsets");
        row("shape as text", changed("/a/shape", "2x3"), 34, "shape should be a list");
        row("nine dimensions", changed("/a/shape", {1, 1, 1, 1, 1, 1, 1, 2, 3}), 34, "at most 8 sizes");
        row("type I64", changed("/a/dtype", "I64"), 34, "'a' is 'I64'; supported are F32, F16 and BF16");
        row("type F8_E4M3", changed("/a/dtype", "F8_E4M3"), 34, "'F8_E4M3'");
        row("type as number", changed("/a/dtype", 4), 34, "dtype should be a string");
        row("size overflow", changed("/a/shape", {1ull << 40, 1ull << 40}), 34, "impossible size");
        row("impossible size", changed("/a/shape", {UINT64_MAX}), 34, "impossible size");
        row("shape and offsets differ", changed("/a/shape", {2, 4}), 34, "needs 32 bytes, data_offsets say 0 to 24");
        row("offsets backwards", changed("/a/data_offsets", {24, 0}), 34, "data_offsets say 24 to 0");
        row("gap", changed("/b/data_offsets", {26, 34}), 36, "leave a gap");
        row("overlap", changed("/b/data_offsets", {20, 28}), 34, "overlap");
        row("first not at 0", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8, "leave a gap");
        row("file too short", smallHeader().dump(), 33, "is it complete?");
        row("file too long", smallHeader().dump(), 35, "the tensors end at 34, the file holds 35");
        row("metadata of numbers", changed("/__metadata__", {{"a", 1}}), 34, "object of strings");
        row("unprintable name", "{\"a\\nb\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "printable ASCII");
        row("entry is no object", "{\"a\":1}", 0, "exactly dtype, shape");
    }
    void refuses() {
        QFETCH(QByteArray, header);
        QFETCH(int, bytes);
        QFETCH(QString, sentence);
        put(header.toStdString(), static_cast<std::size_t>(bytes));
        VERIFY_REFUSED(openWeights(m_root), sentence.toUtf8().constData());
    }

    void refusesHeaderLengths() {
        const auto lengths = {std::pair<std::uint64_t, const char*>{100'000'001, "at most 100000000"},
                              {~0ull, "at most 100000000"},
                              {100, "claims 100 bytes"}};
        for (const auto& [length, sentence] : lengths) {
            std::string bytes;
            appendValue(bytes, length);
            write(m_root / "model.safetensors", bytes + "{}");
            VERIFY_REFUSED(openWeights(m_root), sentence);
        }
        write(m_root / "model.safetensors", "abc");
        VERIFY_REFUSED(openWeights(m_root), "the header's length claims 8 bytes at offset 0, 3 are there");
    }

    void readsShards() {
        putShards();
        const auto file = openWeights(m_root);
        QCOMPARE(file->files().size(), std::size_t(2));
        QCOMPARE(file->files()[0].filename().string(), std::string("model-1.safetensors"));
        QCOMPARE(file->tensors().size(), std::size_t(2));
        QCOMPARE(file->tensor("two", {2}).bytes.size(), std::size_t(8));
    }

    void refusesShards() {
        putShards();
        fs::remove(m_root / "model-2.safetensors");
        VERIFY_REFUSED(openWeights(m_root), "shard 'model-2.safetensors' with 1 tensors is missing");
        putShards();
        index({{"one", "model-1.safetensors"}, {"three", "model-2.safetensors"}});
        VERIFY_REFUSED(openWeights(m_root), "tensor 'three' is missing in shard 'model-2.safetensors'");
        for (const char* name : {"../model-1.safetensors", "/etc/x.safetensors", "..", "sub/model-1.safetensors", "a\\b.safetensors", ""}) {
            index({{"one", name}});
            const std::string said = refusal([&] { openWeights(m_root); });
            QVERIFY2(said.find("not a file name inside") != std::string::npos ||
                         said.find("should be a .safetensors file") != std::string::npos,
                     said.c_str());
        }
        index({{"one", 3}});
        VERIFY_REFUSED(openWeights(m_root), "should be a file name");
        write(m_root / "model.safetensors.index.json", "[]");
        VERIFY_REFUSED(openWeights(m_root), "expected an object with 'weight_map'");
    }

    void followsOnlyInwardLinks() {
        QTemporaryDir outside;
        const fs::path elsewhere = outside.path().toStdString();
        write(elsewhere / "model.safetensors", safetensors(smallHeader().dump(), 34));
        fs::create_symlink(elsewhere / "model.safetensors", m_root / "model.safetensors");
        VERIFY_REFUSED(openWeights(m_root), "is a link out of the model directory");
        fs::remove(m_root / "model.safetensors");
        write(m_root / "inner/real.bin", safetensors(smallHeader().dump(), 34));
        fs::create_symlink("inner/real.bin", m_root / "model.safetensors");
        QCOMPARE(openWeights(m_root)->tensors().size(), std::size_t(3));

        const fs::path snapshot = elsewhere / "models--x/snapshots/abc"; // the layout of a hub cache
        fs::create_directories(snapshot);
        write(elsewhere / "models--x/blobs/1", safetensors(smallHeader().dump(), 34));
        write(elsewhere / "models--x/blobs/2", smallConfig().dump());
        fs::create_symlink("../../blobs/1", snapshot / "model.safetensors");
        fs::create_symlink("../../blobs/2", snapshot / "config.json");
        QCOMPARE(openWeights(snapshot)->tensors().size(), std::size_t(3));
        fs::remove(snapshot / "model.safetensors");
        fs::create_symlink("../../../model.safetensors", snapshot / "model.safetensors");
        VERIFY_REFUSED(openWeights(snapshot), "is a link out of the model directory");
    }

    void refusesPickles() {
        write(m_root / "pytorch_model.bin", "\x80\x02}q");
        VERIFY_REFUSED(openWeights(m_root), "pickle checkpoint");
        fs::remove(m_root / "pytorch_model.bin");
        VERIFY_REFUSED(openWeights(m_root), "holds neither model.safetensors nor");
    }

    void hashesFilesInNameOrder() {
        qputenv("XDG_CACHE_HOME", m_folder->filePath("cache").toUtf8());
        write(m_root / "a", "ab");
        write(m_root / "b", "c");
        const std::string abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; // sha256("abc")
        QCOMPARE(weightHash({m_root / "b", m_root / "a"}), abc);
        std::size_t entries = 0;
        for (const auto& entry : fs::directory_iterator(m_root / "cache/keepsight")) {
            ++entries;
            write(entry.path(), std::string(64, '0') + "\n"); // the second call must come from here
        }
        QCOMPARE(entries, std::size_t(1));
        QCOMPARE(weightHash({m_root / "a", m_root / "b"}), std::string(64, '0'));
        for (const auto& entry : fs::directory_iterator(m_root / "cache/keepsight"))
            write(entry.path(), "damaged");
        QCOMPARE(weightHash({m_root / "a", m_root / "b"}), abc);
        write(m_root / "b", "cd");
        QVERIFY(weightHash({m_root / "a", m_root / "b"}) != abc);
        qputenv("XDG_CACHE_HOME", "/proc/nowhere"); // a cache that cannot be written changes nothing
        write(m_root / "b", "c");
        QCOMPARE(weightHash({m_root / "a", m_root / "b"}), abc);
        VERIFY_REFUSED(weightHash({m_root / "absent"}), "cannot read");
    }

private:
    void put(const std::string& header, std::size_t bytes) { write(m_root / "model.safetensors", safetensors(header, bytes)); }
    void index(const json& map) { write(m_root / "model.safetensors.index.json", json{{"weight_map", map}}.dump()); }
    void putShards() {
        write(m_root / "model-1.safetensors", safetensors(R"({"one":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4));
        write(m_root / "model-2.safetensors", safetensors(R"({"two":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8));
        index({{"one", "model-1.safetensors"}, {"two", "model-2.safetensors"}});
    }

    std::unique_ptr<QTemporaryDir> m_folder;
    fs::path m_root;
};

QTEST_APPLESS_MAIN(SafetensorsTest)
#include "safetensors_test.moc"
