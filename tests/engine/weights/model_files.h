// Small model files written byte by byte, so that each test can break exactly one thing.
#pragma once

#include "engine/data/error.h"
#include "engine/model/weights.h"

#include <QtTest>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

namespace keepsight::test {

inline void append(std::string& out, const void* data, std::size_t size) { out.append(static_cast<const char*>(data), size); }
template <class T>
void appendValue(std::string& out, T value) {
    append(out, &value, sizeof(T));
}
inline void appendString(std::string& out, const std::string& text) {
    appendValue<std::uint64_t>(out, text.size());
    out += text;
}

// A GGUF file in parts: keys (already encoded), tensors, data.
struct Gguf {
    struct Tensor {
        std::string name;
        std::vector<std::uint64_t> dims; // fastest first, as in the file
        std::uint32_t type = 0;
        std::uint64_t offset = 0, bytes = 0;
    };
    std::string magic = "GGUF";
    std::uint32_t version = 3;
    std::vector<std::pair<std::string, std::string>> keys; // name, encoded type + value
    std::vector<Tensor> tensors;
    std::int64_t claimKeys = -1, claimTensors = -1; // ≥ 0: lies
    std::size_t cut = 0;                            // bytes missing at the end
    std::uint64_t alignment = 32;

    static std::string u32(std::uint32_t v) {
        std::string s;
        appendValue<std::uint32_t>(s, 4);
        appendValue(s, v);
        return s;
    }
    static std::string f32(float v) {
        std::string s;
        appendValue<std::uint32_t>(s, 6);
        appendValue(s, v);
        return s;
    }
    static std::string boolean(std::uint8_t v) {
        std::string s;
        appendValue<std::uint32_t>(s, 7);
        appendValue(s, v);
        return s;
    }
    static std::string text(const std::string& v) {
        std::string s;
        appendValue<std::uint32_t>(s, 8);
        appendString(s, v);
        return s;
    }
    static std::string texts(const std::vector<std::string>& v) {
        std::string s;
        appendValue<std::uint32_t>(s, 9);
        appendValue<std::uint32_t>(s, 8);
        appendValue<std::uint64_t>(s, v.size());
        for (const auto& item : v)
            appendString(s, item);
        return s;
    }
    static std::string ints(const std::vector<std::int32_t>& v) {
        std::string s;
        appendValue<std::uint32_t>(s, 9);
        appendValue<std::uint32_t>(s, 5);
        appendValue<std::uint64_t>(s, v.size());
        for (const auto item : v)
            appendValue(s, item);
        return s;
    }

    void set(const std::string& name, const std::string& value) {
        for (auto& [key, old] : keys)
            if (key == name) {
                old = value;
                return;
            }
        keys.emplace_back(name, value);
    }
    void drop(const std::string& name) {
        std::erase_if(keys, [&](const auto& key) { return key.first == name; });
    }
    Tensor& tensor(const std::string& name) {
        for (auto& t : tensors)
            if (t.name == name) return t;
        throw std::logic_error(name);
    }
    void add(const std::string& name, std::vector<std::uint64_t> dims, std::uint32_t type, std::uint64_t bytes) {
        std::uint64_t offset = tensors.empty() ? 0 : tensors.back().offset + tensors.back().bytes;
        offset = (offset + 31) / 32 * 32;
        tensors.push_back({name, std::move(dims), type, offset, bytes});
    }

    std::string bytes() const {
        std::string out = magic;
        appendValue(out, version);
        appendValue<std::uint64_t>(out, claimTensors < 0 ? tensors.size() : static_cast<std::uint64_t>(claimTensors));
        appendValue<std::uint64_t>(out, claimKeys < 0 ? keys.size() : static_cast<std::uint64_t>(claimKeys));
        for (const auto& [name, value] : keys) {
            appendString(out, name);
            out += value;
        }
        for (const auto& t : tensors) {
            appendString(out, t.name);
            appendValue<std::uint32_t>(out, static_cast<std::uint32_t>(t.dims.size()));
            for (const auto d : t.dims)
                appendValue(out, d);
            appendValue(out, t.type);
            appendValue(out, t.offset);
        }
        while (out.size() % alignment != 0)
            out += '\0';
        const std::size_t data = out.size();
        for (const auto& t : tensors)
            if (t.offset < (1u << 20) && out.size() < data + t.offset + t.bytes) out.resize(data + t.offset + t.bytes, '\1');
        out.resize(out.size() - cut);
        return out;
    }
};

// One layer, hidden 32, 2 query heads over 1 KV head of 16, vocabulary 8.
inline Gguf smallGguf() {
    Gguf g;
    g.keys = {{"general.architecture", Gguf::text("llama")},
              {"general.name", Gguf::text("tiny")},
              {"llama.block_count", Gguf::u32(1)},
              {"llama.context_length", Gguf::u32(64)},
              {"llama.embedding_length", Gguf::u32(32)},
              {"llama.feed_forward_length", Gguf::u32(64)},
              {"llama.attention.head_count", Gguf::u32(2)},
              {"llama.attention.head_count_kv", Gguf::u32(1)},
              {"llama.attention.layer_norm_rms_epsilon", Gguf::f32(1e-5f)},
              {"tokenizer.ggml.model", Gguf::text("gpt2")},
              {"tokenizer.ggml.pre", Gguf::text("smollm")},
              {"tokenizer.ggml.tokens", Gguf::texts({"a", "b", "c", "d", "e", "f", "g", "<e>"})},
              {"tokenizer.ggml.token_type", Gguf::ints({1, 1, 1, 1, 1, 1, 1, 3})},
              {"tokenizer.ggml.merges", Gguf::texts({"a b"})},
              {"tokenizer.ggml.eos_token_id", Gguf::u32(7)},
              {"tokenizer.ggml.add_bos_token", Gguf::boolean(0)}};
    g.add("token_embd.weight", {32, 8}, 8, 8 * 34);
    g.add("blk.0.attn_q.weight", {32, 32}, 3, 32 * 20);
    g.add("blk.0.attn_k.weight", {32, 16}, 2, 16 * 18);
    g.add("blk.0.attn_v.weight", {32, 16}, 1, 16 * 64);
    g.add("blk.0.attn_norm.weight", {32}, 0, 128);
    g.add("output_norm.weight", {32}, 30, 64);
    return g;
}

inline std::string safetensors(const std::string& header, std::size_t dataBytes) {
    std::string out;
    appendValue<std::uint64_t>(out, header.size());
    return out + header + std::string(dataBytes, '\1');
}

inline void write(const std::filesystem::path& path, const std::string& bytes) {
    std::filesystem::create_directories(path.parent_path());
    std::filesystem::remove(path); // replacing in place makes some file systems flush to disk each time
    std::ofstream(path, std::ios::binary) << bytes;
}

// The sentence of the EngineError, or what happened instead.
inline std::string refusal(const std::function<void()>& action) {
    try {
        action();
    } catch (const EngineError& e) {
        return e.what();
    } catch (const std::exception& e) {
        return std::string("not an EngineError: ") + e.what();
    }
    return "accepted";
}

} // namespace keepsight::test

#define VERIFY_REFUSED(action, part)                                                                                                       \
    do {                                                                                                                                   \
        const std::string said = keepsight::test::refusal([&] { action; });                                                                \
        QVERIFY2(QString::fromStdString(said).contains(QString::fromUtf8(part)) && said != "accepted", said.c_str());                      \
    } while (false)
