#include "engine/tokenizer/pretokenizer.h"

#include "engine/data/error.h"
#include "engine/tokenizer/unicode.h"

#include <algorithm>

namespace keepsight {
namespace {

constexpr std::uint8_t Visible = Letter | Number | Space; // none of these: an "other" character

// A position in a piece, with the class of the character there.
struct Cursor {
    std::string_view text;
    std::size_t at = 0;
    char32_t value = 0;
    std::size_t length = 0; // 0: end of text
    std::uint8_t bits = 0;

    Cursor(std::string_view t, std::size_t start) : text(t), at(start) { load(); }
    void load() {
        if (at >= text.size()) {
            value = 0;
            length = 0;
            bits = 0;
            return;
        }
        const CodePoint c = codePointAt(text, at);
        value = c.value;
        length = c.length;
        bits = classOf(value);
    }
    bool end() const { return length == 0; }
    void next() {
        at += length;
        load();
    }
    bool is(std::uint8_t mask) const { return (bits & mask) != 0; }
    bool other() const { return !end() && !is(Visible); }
    bool lineEnd() const { return value == '\r' || value == '\n'; }
    Cursor following() const {
        Cursor copy = *this;
        copy.next();
        return copy;
    }
};

std::size_t endOfRun(Cursor c, std::uint8_t mask) {
    while (!c.end() && c.is(mask))
        c.next();
    return c.at;
}

// 's 't 're 've 'm 'll 'd at an apostrophe: bytes matched, or 0.
std::size_t contraction(const Cursor& quote, bool anyCase) {
    if (quote.value != '\'') return 0;
    const auto fold = [&](char32_t c) -> char32_t {
        if (!anyCase) return c;
        if (c == 0x17F) return 's'; // the long s folds to s
        return c >= 'A' && c <= 'Z' ? c + 32 : c;
    };
    const Cursor one = quote.following();
    if (one.end()) return 0;
    const char32_t a = fold(one.value);
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 1 + one.length;
    const Cursor two = one.following();
    if (two.end()) return 0;
    const char32_t b = fold(two.value);
    return ((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

// \s+(?!\S)|\s+ : the whole run at the end of the text, else all but its last character, which belongs to what follows.
std::size_t endOfSpaces(const Cursor& start) {
    const std::size_t end = endOfRun(start, Space);
    if (end == start.text.size()) return end;
    const std::size_t last = end - codePointBefore(start.text, end).length;
    return last > start.at ? last : end;
}

std::size_t endOfOthers(Cursor c) {
    while (c.other())
        c.next();
    return c.at;
}

std::size_t gpt2Piece(std::string_view text, std::size_t at) {
    const Cursor c(text, at);
    if (const std::size_t n = contraction(c, false)) return at + n;
    const Cursor body = c.value == ' ' && !c.following().end() && !c.following().is(Space) ? c.following() : c;
    if (body.is(Letter)) return endOfRun(body, Letter);
    if (body.is(Number)) return endOfRun(body, Number);
    if (body.other()) return endOfOthers(body);
    return endOfSpaces(c);
}

std::size_t llamaPiece(std::string_view text, std::size_t at, int numbersPerPiece) {
    const Cursor c(text, at);
    if (const std::size_t n = contraction(c, true)) return at + n;
    if (c.is(Letter)) return endOfRun(c, Letter);
    if (c.is(Number)) {
        Cursor end = c;
        for (int i = 0; i < numbersPerPiece && end.is(Number); ++i)
            end.next();
        return end.at;
    }
    const Cursor after = c.following();
    if (!c.lineEnd() && after.is(Letter)) return endOfRun(after, Letter); // any one character sticks to the letters after it
    const Cursor body = c.value == ' ' && after.other() ? after : c;
    if (body.other()) {
        Cursor end(text, endOfOthers(body));
        while (end.lineEnd())
            end.next();
        return end.at;
    }
    // Spaces: up to the last line end among them, if there is one.
    const std::size_t end = endOfRun(c, Space);
    const std::size_t line = text.substr(at, end - at).find_last_of("\r\n");
    return line != std::string_view::npos ? at + line + 1 : endOfSpaces(c);
}

std::size_t digitsPiece(std::string_view text, std::size_t at, bool apart) {
    Cursor c(text, at);
    const bool numeric = c.is(Numeric);
    do
        c.next();
    while (!c.end() && c.is(Numeric) == numeric && !(numeric && apart));
    return c.at;
}

std::size_t pieceEnd(SplitStep step, std::string_view text, std::size_t at) {
    switch (step) {
    case SplitStep::gpt2:
        return gpt2Piece(text, at);
    case SplitStep::llama3:
        return llamaPiece(text, at, 3);
    case SplitStep::qwen2:
        return llamaPiece(text, at, 1);
    case SplitStep::digitsApart:
        return digitsPiece(text, at, true);
    case SplitStep::digitRuns:
        return digitsPiece(text, at, false);
    case SplitStep::spaceInFront:
        break; // handled by run()
    }
    return text.size();
}

struct Known {
    const char* name;
    std::vector<SplitStep> steps;
};
const std::vector<Known>& knownPreTokenizers() {
    static const std::vector<Known> known = {
        {"gpt-2", {SplitStep::gpt2}},
        {"smollm", {SplitStep::digitsApart, SplitStep::gpt2}},
        {"llama-bpe", {SplitStep::llama3}},
        {"qwen2", {SplitStep::qwen2}},
    };
    return known;
}

} // namespace

std::optional<SplitStep> stepOfExpression(std::string_view regex) {
    if (regex == R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)") return SplitStep::gpt2;
    constexpr std::string_view head = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)";
    constexpr std::string_view tail = R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
    if (regex.size() > head.size() + tail.size() && regex.substr(0, head.size()) == head &&
        regex.substr(regex.size() - tail.size()) == tail) {
        const std::string_view numbers = regex.substr(head.size(), regex.size() - head.size() - tail.size());
        if (numbers == R"(\p{N}{1,3})") return SplitStep::llama3;
        if (numbers == R"(\p{N})") return SplitStep::qwen2;
    }
    return std::nullopt;
}

PreTokenizer PreTokenizer::named(std::string_view name) {
    // Files that name none, or "default", come from converters that did not recognise the tokenizer: GPT-2's split is the common ground.
    if (name.empty() || name == "default") return {"gpt-2 (the file says default)", {SplitStep::gpt2}};
    std::string names;
    for (const Known& known : knownPreTokenizers()) {
        if (name == known.name) return {known.name, known.steps};
        names += (names.empty() ? "" : ", ") + std::string(known.name);
    }
    throw EngineError("tokenizer: pre-tokenizer '" + std::string(name) + "' (tokenizer.ggml.pre) is not supported; known are " + names);
}

PreTokenizer PreTokenizer::of(std::vector<SplitStep> steps) {
    std::vector<SplitStep> core = steps;
    std::erase(core, SplitStep::spaceInFront);
    for (const Known& known : knownPreTokenizers())
        if (core == known.steps) return {known.name, std::move(steps)};
    return {"custom", std::move(steps)};
}

void PreTokenizer::split(std::string_view utf8, const Sink& sink) const {
    if (!utf8.empty()) run(0, utf8, sink);
}

void PreTokenizer::run(std::size_t step, std::string_view text, const Sink& sink) const {
    if (step == m_steps.size()) {
        sink(text);
        return;
    }
    if (m_steps[step] == SplitStep::spaceInFront) {
        if (text.front() == ' ')
            run(step + 1, text, sink);
        else
            run(step + 1, " " + std::string(text), sink);
        return;
    }
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t end = pieceEnd(m_steps[step], text, at);
        run(step + 1, text.substr(at, end - at), sink);
        at = end;
    }
}

} // namespace keepsight
