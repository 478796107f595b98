// Built-in chat frames. A template is a program; rather than run it, we know the result of a few, found by the hash of their text.
#include "engine/tokenizer/tokenizer.h"

#include <openssl/evp.h>

#include <array>

namespace keepsight {
namespace {

std::string sha256(std::string_view text) {
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
    unsigned int length = 0;
    if (EVP_Digest(text.data(), text.size(), digest.data(), &length, EVP_sha256(), nullptr) != 1) return {};
    constexpr char digits[] = "0123456789abcdef";
    std::string hex;
    for (unsigned int i = 0; i < length; ++i) {
        hex += digits[digest[i] >> 4];
        hex += digits[digest[i] & 15];
    }
    return hex;
}

std::string_view trimmed(std::string_view text) {
    constexpr std::string_view blanks = " \t\r\n";
    const std::size_t first = text.find_first_not_of(blanks);
    return first == std::string_view::npos ? std::string_view() : text.substr(first, text.find_last_not_of(blanks) - first + 1);
}

// The default system message stands in the template itself, inside one string literal.
std::string between(std::string_view text, std::string_view before, std::string_view after) {
    const std::size_t start = text.find(before);
    if (start == std::string_view::npos) return {};
    const std::size_t end = text.find(after, start + before.size());
    return end == std::string_view::npos ? std::string() : std::string(text.substr(start + before.size(), end - start - before.size()));
}

ChatFrame chatMl(std::string name, std::string system) {
    ChatFrame frame;
    frame.name = std::move(name);
    frame.system = std::move(system);
    if (!frame.system.empty()) frame.userBefore = "<|im_start|>system\n" + frame.system + "<|im_end|>\n";
    frame.userBefore += "<|im_start|>user\n";
    frame.userAfter = "<|im_end|>\n<|im_start|>assistant\n";
    frame.stops = {"<|im_end|>"};
    return frame;
}

ChatFrame llama3() {
    ChatFrame frame;
    frame.name = "llama-3-instruct";
    frame.userBefore = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n";
    frame.userAfter = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
    frame.stops = {"<|eot_id|>", "<|end_of_text|>"};
    return frame;
}

} // namespace

ChatFrame chatFrameFor(std::string_view chatTemplate) {
    const std::string_view text = trimmed(chatTemplate);
    const std::string hash = sha256(text);
    if (hash == "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788")
        return chatMl("smollm2-instruct", between(text, "<|im_start|>system\n", "<|im_end|>"));
    if (hash == "ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122") return llama3();
    if (hash == "153280e3ff55d19da1398bdb3914ee2a51b80429bfaedde11d7d216c39db80f3") return chatMl("chatml", {});
    return {};
}

} // namespace keepsight
