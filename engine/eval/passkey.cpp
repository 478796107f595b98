#include "engine/eval/passkey.h"

#include "engine/data/error.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace keepsight {
namespace {

// Chosen by trial: a 135M model with its full cache must find the key in 4000 tokens. Asking for a number matters most; with
// "What is the pass key?" it explains what pass keys are.
constexpr std::string_view Instruction = "An important number is hidden in a long and boring text. Find the pass key and remember it. "
                                         "I will ask you for the pass key at the end.\n\n";
constexpr std::string_view Question = "\n\nThe text above mentions a pass key, which is a number. Which number is it?";
constexpr std::string_view AnswerCue = "The pass key is";
constexpr std::string_view RawJoint = "\n"; // stands between question and cue where no frame does

constexpr std::array<std::string_view, 5> OwnFiller = {
    "The road is long. ", "The field is wide. ", "The wind is soft. ", "The day is slow. ", "On we walk, and home again. ",
};

std::string keyStatement(const std::string& key) { return "The pass key is " + key + ". Remember it. " + key + " is the pass key. "; }

// The SplitMix64 step: the same numbers on every platform, which std distributions do not promise.
std::uint64_t nextRandom(std::uint64_t& state) {
    std::uint64_t z = state += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

std::string makeKey(std::uint64_t seed, int keyIndex, int digits) {
    std::uint64_t state = seed;
    state = nextRandom(state) ^ static_cast<std::uint64_t>(keyIndex);
    state = nextRandom(state) ^ static_cast<std::uint64_t>(digits);
    std::string key;
    for (int i = 0; i < digits; ++i) // no leading zero: a key is written as a number
        key += static_cast<char>(i == 0 ? '1' + nextRandom(state) % 9 : '0' + nextRandom(state) % 10);
    return key;
}

bool blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

// Sentences with the white space that follows them; a line end closes one too.
std::vector<std::string> sentencesOf(std::string_view text) {
    std::vector<std::string> sentences;
    for (std::size_t at = 0; at < text.size();) {
        std::size_t end = at;
        bool closed = false;
        while (end < text.size() && !closed) {
            const char c = text[end++];
            closed = c == '\n' || ((c == '.' || c == '!' || c == '?') && end < text.size() && blank(text[end]));
        }
        while (end < text.size() && blank(text[end]))
            ++end;
        std::string sentence(text.substr(at, end - at));
        at = end;
        if (std::all_of(sentence.begin(), sentence.end(), blank)) continue;
        if (!blank(sentence.back())) sentence += ' '; // the text's last one, before it starts again
        sentences.push_back(std::move(sentence));
    }
    return sentences;
}

struct Plan {
    const Tokenizer& tokenizer;
    const ChatFrame& frame;
    std::vector<std::string> sentences;
    std::string statement;
    double depth;

    std::vector<TokenId> framed(std::string_view text) const { return tokenizer.encode(text, {.parseSpecial = true}); }

    std::vector<TokenId> question() const {
        std::vector<TokenId> ids = tokenizer.encode(Question);
        const auto add = [&](const std::vector<TokenId>& more) { ids.insert(ids.end(), more.begin(), more.end()); };
        add(frame.name.empty() ? tokenizer.encode(RawJoint) : framed(frame.userAfter));
        add(tokenizer.encode(AnswerCue));
        return ids;
    }

    struct Body {
        std::string text;
        std::size_t needle = 0; // byte offset of the key statement
    };
    Body body(std::size_t count) const {
        const auto before = static_cast<std::size_t>(std::llround(static_cast<double>(count) * depth / 100.0));
        Body body;
        body.text = Instruction;
        for (std::size_t i = 0; i <= count; ++i) {
            if (i == before) {
                body.needle = body.text.size();
                body.text += statement;
            }
            if (i < count) body.text += sentences[i % sentences.size()];
        }
        while (blank(body.text.back()))
            body.text.pop_back();
        return body;
    }
};

} // namespace

PasskeyPrompt makePasskey(const Tokenizer& tokenizer, int length, double depthPercent, int keyIndex, int digits, std::uint64_t seed,
                          std::string_view haystack, const ChatFrame& frame) {
    if (!(depthPercent >= 0.0 && depthPercent <= 100.0))
        throw UsageError("needle: expected a depth from 0 to 100 percent, found " + std::to_string(depthPercent));
    if (digits < 1 || digits > 256) throw UsageError("needle: expected keys of 1 to 256 digits, found " + std::to_string(digits));

    PasskeyPrompt prompt;
    prompt.expected = makeKey(seed, keyIndex, digits);
    Plan plan{tokenizer, frame, sentencesOf(haystack), keyStatement(prompt.expected), depthPercent};
    if (plan.sentences.empty()) plan.sentences.assign(OwnFiller.begin(), OwnFiller.end());

    const std::vector<TokenId> head = plan.framed(frame.name.empty() ? std::string_view() : std::string_view(frame.userBefore));
    prompt.question = plan.question();
    const std::size_t around = head.size() + prompt.question.size();
    const auto total = [&](std::size_t count) { return around + tokenizer.encode(plan.body(count).text).size(); };
    const std::size_t wanted = length < 0 ? 0 : static_cast<std::size_t>(length);

    if (const std::size_t least = total(1); least > wanted)
        throw UsageError("needle: expected a length of at least " + std::to_string(least) + " tokens for a key of " +
                         std::to_string(digits) + " digits, found " + std::to_string(length));
    // The largest number of sentences that fits: grow by doubling, then halve the gap.
    std::size_t fits = 1, tooMany = 2;
    while (total(tooMany) <= wanted) {
        fits = tooMany;
        tooMany *= 2;
    }
    while (tooMany - fits > 1) {
        const std::size_t middle = fits + (tooMany - fits) / 2;
        (total(middle) <= wanted ? fits : tooMany) = middle;
    }

    const Plan::Body body = plan.body(fits);
    const std::vector<TokenId> ids = tokenizer.encode(body.text);
    prompt.context = head;
    prompt.context.insert(prompt.context.end(), ids.begin(), ids.end());

    // The statement's bytes without the space behind it, as tokens: every token that holds at least one of them.
    const std::size_t first = body.needle, last = body.needle + plan.statement.size() - 1;
    std::size_t at = 0;
    Position begin = -1, end = -1;
    for (std::size_t i = 0; i < ids.size(); ++i) {
        const std::size_t next = at + tokenizer.bytes(ids[i]).size();
        if (begin < 0 && next > first) begin = static_cast<Position>(i);
        if (at < last) end = static_cast<Position>(i) + 1;
        at = next;
    }
    prompt.needleBegin = static_cast<Position>(head.size()) + begin;
    prompt.needleEnd = static_cast<Position>(head.size()) + end;
    return prompt;
}

PasskeyScore scorePasskey(std::string_view answer, std::string_view expected) {
    const auto digit = [](char c) { return c >= '0' && c <= '9'; };
    PasskeyScore score;
    bool first = true;
    for (auto at = std::find_if(answer.begin(), answer.end(), digit); at != answer.end();) {
        const auto end = std::find_if_not(at, answer.end(), digit);
        const std::string_view run(&*at, static_cast<std::size_t>(end - at));
        if (first && !expected.empty()) {
            const auto differs = std::mismatch(run.begin(), run.end(), expected.begin(), expected.end()).first;
            score.prefix = static_cast<double>(differs - run.begin()) / static_cast<double>(expected.size());
            first = false;
        }
        if (run.size() == expected.size()) {
            score.exact = run == expected ? 1.0 : 0.0;
            break;
        }
        at = std::find_if(end, answer.end(), digit);
    }
    return score;
}

} // namespace keepsight
