// Every rule of the GGUF reader, each broken once; and the real default model.
#include "tests/engine/weights/model_files.h"

using namespace keepsight;
using namespace keepsight::test;
using Break = std::function<void(Gguf&)>;
Q_DECLARE_METATYPE(Break)

class GgufTest : public QObject {
    Q_OBJECT

private Q_SLOTS:
    void readsSmallFile() {
        for (const std::uint32_t version : {2u, 3u}) {
            Gguf g = smallGguf();
            g.version = version;
            const auto file = open(g.bytes());
            const ModelConfig& c = file->config();
            QCOMPARE(c.architecture, std::string("llama"));
            QCOMPARE(c.name, std::string("tiny"));
            QCOMPARE(c.layers, 1);
            QCOMPARE(c.queryHeads, 2);
            QCOMPARE(c.kvHeads, 1);
            QCOMPARE(c.headDim, 16);
            QCOMPARE(c.feedForward, 64);
            QCOMPARE(c.vocab, 8);
            QCOMPARE(c.maxPositions, 64);
            QVERIFY(c.tiedEmbeddings && !c.attentionBias && !c.mlpBias && c.ropeFactors.empty());
            QCOMPARE(file->format(), std::string("gguf"));
            QCOMPARE(file->tensors().size(), std::size_t(6));
            const auto& q = file->tensor("blk.0.attn_q.weight", {32, 32});
            QCOMPARE(q.bytes.size(), std::size_t(32 * 20));
            QVERIFY(q.type == WeightType::q4_1);
            QCOMPARE(file->tensor("blk.0.attn_k.weight", {16, 32}).bytes.size(), std::size_t(16 * 18));
            QCOMPARE(file->tokenizer().tokens.at(7), std::string("<e>"));
            QCOMPARE(file->tokenizer().types.at(7), 3);
            QCOMPARE(file->tokenizer().merges.at(0), std::string("a b"));
            QCOMPARE(file->tokenizer().ggmlPre, std::string("smollm"));
            QCOMPARE(file->stopTokens(), std::vector<std::int32_t>{7});
        }
    }

    void readsOptionalKeys() {
        Gguf g = smallGguf();
        g.set("llama.rope.freq_base", Gguf::f32(500000.0f));
        g.set("llama.rope.scaling.type", Gguf::text("linear"));
        g.set("llama.rope.scaling.factor", Gguf::f32(4.0f));
        g.set("llama.attention.head_count_kv", Gguf::ints({1}));
        g.set("tokenizer.ggml.eot_token_id", Gguf::u32(6));
        g.set("general.alignment", Gguf::u32(64));
        g.alignment = 64;
        for (auto& t : g.tensors)
            t.offset *= 2;
        g.add("output.weight", {32, 8}, 8, 8 * 34);
        g.tensors.back().offset = (g.tensors.back().offset + 63) / 64 * 64;
        g.add("rope_freqs.weight", {8}, 0, 32);
        g.tensors.back().offset = (g.tensors.back().offset + 63) / 64 * 64;
        // bytes 01 01 01 01 are a small positive float
        const auto file = open(g.bytes());
        QCOMPARE(file->config().ropeTheta, 500000.0);
        QVERIFY(file->config().ropeScaling.kind == RopeScaling::Kind::linear);
        QCOMPARE(file->config().ropeScaling.factor, 4.0);
        QCOMPARE(file->config().ropeFactors.size(), std::size_t(8));
        QVERIFY(!file->config().tiedEmbeddings);
        QCOMPARE(file->stopTokens(), (std::vector<std::int32_t>{7, 6}));
    }

    void namesMissingAndMisshapenTensors() {
        const auto file = open(smallGguf().bytes());
        VERIFY_REFUSED(file->tensor("blk.0.ffn_up.weight", {64, 32}), "'blk.0.ffn_up.weight' (64×32) is missing");
        VERIFY_REFUSED(file->tensor("blk.0.attn_k.weight", {32, 32}), "'blk.0.attn_k.weight' is 16×32, the config says 32×32");
        QVERIFY(file->find("nothing") == nullptr);
    }

    void refuses_data() {
        QTest::addColumn<Break>("breakIt");
        QTest::addColumn<QString>("sentence");
        const auto row = [](const char* name, const Break& b, const char* sentence) {
            QTest::newRow(name) << b << QString::fromUtf8(sentence);
        };
        row(
            "magic", [](Gguf& g) { g.magic = "GGLA"; }, "starting with 'GGLA'");
        row(
            "version 1", [](Gguf& g) { g.version = 1; }, "GGUF version 1, versions 2 and 3");
        row(
            "version 4", [](Gguf& g) { g.version = 4; }, "GGUF version 4");
        row(
            "big-endian", [](Gguf& g) { g.version = 0x03000000; }, "big-endian");
        row(
            "too many keys", [](Gguf& g) { g.claimKeys = 1 << 19; }, "claims 524288 keys");
        row(
            "keys that overflow", [](Gguf& g) { g.claimKeys = INT64_MAX; }, "claims 9223372036854775807 keys");
        row(
            "too many tensors", [](Gguf& g) { g.claimTensors = 1 << 19; }, "claims 524288 tensors");
        row(
            "tensors that overflow", [](Gguf& g) { g.claimTensors = INT64_MAX; }, "claims 9223372036854775807 tensors");
        row(
            "one tensor too many", [](Gguf& g) { g.claimTensors = 7; }, "weights: ");
        row(
            "unknown value type", [](Gguf& g) { g.set("x", std::string("\x0d\0\0\0\0\0\0\0", 8)); }, "key 'x' has the unknown type 13");
        row(
            "huge string", [](Gguf& g) { g.set("x", std::string("\x08\0\0\0\0\0\0\x10\0\0\0\0", 12)); },
            "claims 268435456 bytes, at most 67108864");
        row(
            "string past the end", [](Gguf& g) { g.set("x", std::string("\x08\0\0\0\0\0\x10\0\0\0\0\0", 12)); },
            "claims 1048576 bytes at offset");
        row(
            "string length wraps", [](Gguf& g) { g.set("x", std::string("\x08\0\0\0") + std::string(8, '\xff')); }, "key 'x'");
        row(
            "array past the end", [](Gguf& g) { g.set("x", std::string("\x09\0\0\0\x0c\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7f", 16)); },
            "items in key 'x'");
        row(
            "string array past the end", [](Gguf& g) { g.set("x", std::string("\x09\0\0\0\x08\0\0\0\0\0\x10\0\0\0\0\0", 16)); },
            "claims 1048576 items in key 'x'");
        row(
            "nested too deep",
            [](Gguf& g) {
                std::string value("\x09\0\0\0", 4);
                for (int i = 0; i < 6; ++i)
                    value += std::string("\x09\0\0\0\x01\0\0\0\0\0\0\0", 12);
                g.set("x", value + std::string(64, '\0'));
            },
            "nests arrays deeper than 4");
        row(
            "boolean 2", [](Gguf& g) { g.set("x", Gguf::boolean(2)); }, "boolean other than 0 and 1");
        row(
            "duplicate key", [](Gguf& g) { g.keys.push_back(g.keys[0]); }, "key 'general.architecture' occurs twice");
        row(
            "unprintable key", [](Gguf& g) { g.set("a\nb", Gguf::u32(1)); }, "'a?b' should be 1 to 512 printable");
        row(
            "empty key", [](Gguf& g) { g.set("", Gguf::u32(1)); }, "printable ASCII");
        row(
            "alignment 48", [](Gguf& g) { g.set("general.alignment", Gguf::u32(48)); }, "general.alignment is 48");
        row(
            "alignment 0", [](Gguf& g) { g.set("general.alignment", Gguf::u32(0)); }, "general.alignment is 0");
        row(
            "alignment 128 KiB", [](Gguf& g) { g.set("general.alignment", Gguf::u32(131072)); }, "general.alignment is 131072");
        row(
            "alignment as text", [](Gguf& g) { g.set("general.alignment", Gguf::text("32")); }, "'general.alignment' should be an integer");
        row(
            "duplicate tensor", [](Gguf& g) { g.add("output_norm.weight", {32}, 0, 128); }, "tensor 'output_norm.weight' occurs twice");
        row(
            "no dimensions", [](Gguf& g) { g.tensor("output_norm.weight").dims = {}; }, "has 0 dimensions");
        row(
            "five dimensions",
            [](Gguf& g) {
                g.tensor("output_norm.weight").dims = {2, 2, 2, 2, 2};
            },
            "has 5 dimensions");
        row(
            "empty dimension", [](Gguf& g) { g.tensor("output_norm.weight").dims = {0}; }, "impossible size 0");
        row(
            "huge dimension", [](Gguf& g) { g.tensor("output_norm.weight").dims = {1ull << 63}; }, "impossible size");
        row(
            "product overflows",
            [](Gguf& g) {
                g.tensor("output_norm.weight").dims = {1ull << 33, 1ull << 33};
            },
            "impossible size");
        row(
            "Q4_K", [](Gguf& g) { g.tensor("blk.0.attn_q.weight").type = 12; }, "'blk.0.attn_q.weight' is Q4_K; supported are");
        row(
            "IQ4_XS", [](Gguf& g) { g.tensor("blk.0.attn_q.weight").type = 23; }, "is IQ4_XS; supported are");
        row(
            "Q5_1", [](Gguf& g) { g.tensor("blk.0.attn_q.weight").type = 7; }, "is Q5_1; supported are");
        row(
            "MXFP4", [](Gguf& g) { g.tensor("blk.0.attn_q.weight").type = 39; }, "is MXFP4; supported are");
        row(
            "type 4", [](Gguf& g) { g.tensor("blk.0.attn_q.weight").type = 4; }, "of unknown type 4");
        row(
            "type 4 billion", [](Gguf& g) { g.tensor("blk.0.attn_q.weight").type = 0xffffffff; }, "of unknown type 4294967295");
        row(
            "odd block row",
            [](Gguf& g) {
                g.tensor("blk.0.attn_q.weight").dims = {33, 32};
            },
            "rows of 33, expected a multiple of 32");
        row(
            "unaligned offset", [](Gguf& g) { g.tensor("output_norm.weight").offset += 1; }, "no multiple of the alignment 32");
        row(
            "offset past the end", [](Gguf& g) { g.tensor("output_norm.weight").offset = 1ull << 40; }, "is the file complete?");
        row(
            "offset that overflows", [](Gguf& g) { g.tensor("output_norm.weight").offset = ~0ull - 31; }, "is the file complete?");
        row(
            "overlap", [](Gguf& g) { g.tensor("output_norm.weight").offset = 0; }, "overlaps tensor");
        row(
            "cut short", [](Gguf& g) { g.cut = 1; }, "is the file complete?");
        row(
            "architecture", [](Gguf& g) { g.set("general.architecture", Gguf::text("mamba")); }, "architecture 'mamba' is not supported");
        row(
            "no architecture", [](Gguf& g) { g.drop("general.architecture"); }, "'general.architecture' is missing");
        row(
            "no layers", [](Gguf& g) { g.drop("llama.block_count"); }, "'llama.block_count' is missing");
        row(
            "no heads", [](Gguf& g) { g.drop("llama.attention.head_count"); }, "'llama.attention.head_count' is missing");
        row(
            "no feed-forward", [](Gguf& g) { g.drop("llama.feed_forward_length"); }, "'llama.feed_forward_length' is missing");
        row(
            "no epsilon", [](Gguf& g) { g.drop("llama.attention.layer_norm_rms_epsilon"); }, "rms_epsilon' is missing");
        row(
            "zero heads", [](Gguf& g) { g.set("llama.attention.head_count", Gguf::u32(0)); }, "query heads should be 1 to");
        row(
            "heads that do not divide",
            [](Gguf& g) {
                g.set("llama.attention.head_count", Gguf::u32(4));
                g.set("llama.attention.head_count_kv", Gguf::u32(3));
            },
            "cannot share 3 KV heads");
        row(
            "heads per layer",
            [](Gguf& g) {
                g.set("llama.attention.head_count_kv", Gguf::ints({1, 2}));
            },
            "differs between layers");
        row(
            "float as layer count", [](Gguf& g) { g.set("llama.block_count", Gguf::f32(1)); }, "'llama.block_count' should be an integer");
        row(
            "split value size", [](Gguf& g) { g.set("llama.attention.value_length", Gguf::u32(8)); }, "keys have 16 and values 8");
        row(
            "partial rotation", [](Gguf& g) { g.set("llama.rope.dimension_count", Gguf::u32(8)); }, "rotates 8 of 16");
        row(
            "yarn", [](Gguf& g) { g.set("llama.rope.scaling.type", Gguf::text("yarn")); }, "rope scaling 'yarn' is not supported");
        row(
            "sliding window", [](Gguf& g) { g.set("llama.attention.sliding_window", Gguf::u32(16)); }, "sliding window of 16");
        row(
            "experts", [](Gguf& g) { g.set("llama.expert_count", Gguf::u32(8)); }, "8 experts");
        row(
            "split file", [](Gguf& g) { g.set("split.count", Gguf::u32(2)); }, "one of 2 parts");
        row(
            "no embedding", [](Gguf& g) { g.tensor("token_embd.weight").name = "other"; }, "'token_embd.weight' is missing");
        row(
            "embedding shape", [](Gguf& g) { g.set("llama.embedding_length", Gguf::u32(64)); }, "'token_embd.weight' is 8×32, expected");
        row(
            "rope factors' shape", [](Gguf& g) { g.add("rope_freqs.weight", {4}, 0, 16); }, "expected F32 8");
        row(
            "more tokens than rows", [](Gguf& g) { g.set("tokenizer.ggml.tokens", Gguf::texts(std::vector<std::string>(9, "x"))); },
            "9 tokens, the embedding only 8");
        row(
            "types and tokens differ", [](Gguf& g) { g.set("tokenizer.ggml.token_type", Gguf::ints({1})); }, "8 tokens but 1 token types");
        row(
            "token type 9", [](Gguf& g) { g.set("tokenizer.ggml.token_type", Gguf::ints({9})); }, "unknown type 9");
        row(
            "eos out of range", [](Gguf& g) { g.set("tokenizer.ggml.eos_token_id", Gguf::u32(8)); },
            "eos_token_id' is 8, the vocabulary has 8");
        row(
            "template not UTF-8", [](Gguf& g) { g.set("tokenizer.chat_template", Gguf::text("\xff\xfe")); },
            "'tokenizer.chat_template' is not UTF-8");
    }
    void refuses() {
        QFETCH(Break, breakIt);
        QFETCH(QString, sentence);
        Gguf g = smallGguf();
        breakIt(g);
        VERIFY_REFUSED(open(g.bytes()), sentence.toUtf8().constData());
    }

    void refusesEveryTruncation() {
        const std::string whole = smallGguf().bytes();
        for (std::size_t length = 0; length < whole.size(); length += 7) {
            const std::string said = refusal([&] { open(whole.substr(0, length)); });
            QVERIFY2(said.starts_with("weights: "), (std::to_string(length) + ": " + said).c_str());
        }
    }

    void refusesOtherFiles() {
        const auto refuse = [&](const char* name, const std::string& bytes, const char* sentence) {
            const auto path = m_folder.filePath(name).toStdString();
            write(path, bytes);
            VERIFY_REFUSED(openWeights(path), sentence);
        };
        refuse("model.bin", "\x80\x02}q", "pickle checkpoint");
        refuse("model.pt", std::string("PK\x03\x04") + "archive/data.pkl", "convert it to safetensors");
        refuse("renamed.gguf", std::string("PK\x03\x04") + "archive/data.pkl", "pickle checkpoint");
        refuse("model.safetensors", safetensors("{}", 0), "open the directory it is in");
        refuse("empty.gguf", "", "found an empty file");
        refuse("text.gguf", "hello", "starting with 'hell'");
        VERIFY_REFUSED(openWeights(m_folder.filePath("absent.gguf").toStdString()), "does not exist");
        VERIFY_REFUSED(openWeights("/dev/zero"), "regular file");
        QTemporaryDir empty;
        VERIFY_REFUSED(openWeights(empty.path().toStdString()), "holds no config.json and no .gguf file");
        write(empty.filePath("a.gguf").toStdString(), smallGguf().bytes());
        QCOMPARE(openWeights(empty.path().toStdString())->config().vocab, 8); // a folder with one file needs no file name
        write(empty.filePath("b.gguf").toStdString(), smallGguf().bytes());
        VERIFY_REFUSED(openWeights(empty.path().toStdString()), "2 .gguf files");
    }

    void sizesOfRows() {
        QCOMPARE(rowBytes(WeightType::q4_0, 64), 36);
        QCOMPARE(rowBytes(WeightType::q4_1, 64), 40);
        QCOMPARE(rowBytes(WeightType::q8_0, 64), 68);
        QCOMPARE(rowBytes(WeightType::bf16, 3), 6);
        QCOMPARE(rowBytes(WeightType::f32, 0), 0);
        VERIFY_REFUSED(rowBytes(WeightType::q8_0, 33), "no multiple of Q8_0's block");
        VERIFY_REFUSED(rowBytes(WeightType::f32, INT64_MAX), "too long");
    }

    void readsTheDefaultModel() {
        const auto file = openWeights(KEEPSIGHT_BUILD "/models/SmolLM2-135M-Instruct.Q4_1.gguf");
        const ModelConfig& c = file->config();
        QCOMPARE(c.layers, 30);
        QCOMPARE(c.queryHeads, 9);
        QCOMPARE(c.kvHeads, 3);
        QCOMPARE(c.headDim, 64);
        QCOMPARE(c.hidden, 576);
        QCOMPARE(c.feedForward, 1536);
        QCOMPARE(c.vocab, 49152);
        QCOMPARE(c.maxPositions, 8192);
        QCOMPARE(c.ropeTheta, 100000.0);
        QVERIFY(std::abs(c.normEps - 1e-5) < 1e-10);
        QVERIFY(c.tiedEmbeddings);
        QCOMPARE(file->tensors().size(), std::size_t(272));
        QVERIFY(file->tensor("token_embd.weight", {49152, 576}).type == WeightType::q8_0);
        QVERIFY(file->tensor("blk.29.ffn_down.weight", {576, 1536}).type == WeightType::q4_1);
        const TokenizerSource& t = file->tokenizer();
        QVERIFY(t.kind == TokenizerSource::Kind::gguf);
        QCOMPARE(t.tokens.size(), std::size_t(49152));
        QCOMPARE(t.types.size(), std::size_t(49152));
        QCOMPARE(t.merges.size(), std::size_t(48900));
        QCOMPARE(t.ggmlPre, std::string("smollm"));
        QCOMPARE(t.tokens.at(2), std::string("<|im_end|>"));
        QVERIFY(!t.addBos);
        QVERIFY(t.chatTemplate.find("<|im_start|>") != std::string::npos);
        QCOMPARE(file->stopTokens(), std::vector<std::int32_t>{2});
    }

private:
    std::unique_ptr<WeightFile> open(const std::string& bytes) {
        const auto path = m_folder.filePath(QString("m%1.gguf").arg(m_count++)).toStdString();
        write(path, bytes);
        return openWeights(path);
    }

    QTemporaryDir m_folder;
    int m_count = 0;
};

QTEST_APPLESS_MAIN(GgufTest)
#include "gguf_test.moc"
