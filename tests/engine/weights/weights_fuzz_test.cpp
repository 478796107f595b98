// Seeded damage to small valid files: each is refused by an EngineError or read to its end, and never anything else.
#include "tests/engine/weights/model_files.h"

#include <random>

using namespace keepsight;
using namespace keepsight::test;
namespace fs = std::filesystem;

namespace {

constexpr int Rounds = 3000;

std::string damaged(std::string bytes, std::mt19937_64& random) {
    const auto upTo = [&](std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(random); };
    for (std::size_t edits = 1 + upTo(4); edits > 0 && !bytes.empty(); --edits) {
        const std::size_t at = upTo(bytes.size());
        switch (upTo(6)) {
        case 0:
            bytes[at] = static_cast<char>(bytes[at] ^ (1 << upTo(8)));
            break;
        case 1:
            bytes[at] = static_cast<char>(upTo(256));
            break;
        case 2:
            bytes.resize(at);
            break;
        case 3:
            bytes.insert(at, std::string(1 + upTo(9), static_cast<char>(upTo(256))));
            break;
        case 4:
            bytes.erase(at, 1 + upTo(9));
            break;
        case 5: // an eight-byte number at the borders
            for (std::size_t i = 0; i < 8 && at + i < bytes.size(); ++i)
                bytes[at + i] = static_cast<char>((i == 7 && upTo(2) == 0) ? 0x7f : 0xff);
            break;
        }
    }
    return bytes;
}

// Reads the first and last byte of each tensor, so that a wrong range faults here.
std::size_t touch(const WeightFile& file) {
    std::size_t sum = file.tokenizer().tokens.size();
    for (const auto& [name, tensor] : file.tensors())
        if (!tensor.bytes.empty()) sum += static_cast<std::size_t>(tensor.bytes.front()) + static_cast<std::size_t>(tensor.bytes.back());
    return sum;
}

} // namespace

class WeightsFuzzTest : public QObject {
    Q_OBJECT

private Q_SLOTS:
    void gguf() { run("m.gguf", smallGguf().bytes()); }
    void safetensorsFile() {
        write(root() / "config.json", config());
        run("model.safetensors",
            safetensors(
                R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}})",
                32));
    }
    void configFile() {
        write(root() / "model.safetensors", safetensors("{}", 0));
        run("config.json", config());
    }

private:
    fs::path root() const { return m_folder.path().toStdString(); }
    static std::string config() {
        return R"({"model_type":"llama","hidden_size":32,"num_hidden_layers":1,"num_attention_heads":4,"intermediate_size":64,"vocab_size":8,)"
               R"("rope_scaling":{"rope_type":"linear","factor":2.0},"tie_word_embeddings":true})";
    }
    void run(const char* name, const std::string& valid) {
        const fs::path file = root() / name, target = file.extension() == ".gguf" ? file : root();
        write(file, valid);
        QCOMPARE(refusal([&] { touch(*openWeights(target)); }), std::string("accepted"));
        std::mt19937_64 random(20240917);
        int refused = 0;
        for (int i = 0; i < Rounds; ++i) {
            write(file, damaged(valid, random));
            const std::string said = refusal([&] { touch(*openWeights(target)); });
            QVERIFY2(!said.starts_with("not an EngineError"), (std::to_string(i) + ": " + said).c_str());
            refused += said != "accepted";
        }
        QVERIFY2(refused > Rounds / 4 && refused <= Rounds, std::to_string(refused).c_str()); // the damage is real
        fs::remove(file);
    }

    QTemporaryDir m_folder;
};

QTEST_APPLESS_MAIN(WeightsFuzzTest)
#include "weights_fuzz_test.moc"
