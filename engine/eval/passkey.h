// Pass-key retrieval prompts: a number stated once in much indifferent text, asked for at the end. Wording is ours.
#pragma once

#include "engine/tokenizer/tokenizer.h"

#include <cstdint>

namespace keepsight {

struct PasskeyPrompt {
    std::vector<TokenId> context;            // frame, instruction, filler with the key: what a query-unaware policy sees
    std::vector<TokenId> question;           // question, rest of the frame, answer cue; the answer follows
    std::string expected;                    // the key's digits
    Position needleBegin = 0, needleEnd = 0; // tokens of the key statement in context, end exclusive
};

// A prompt of at most `length` tokens (context and question together), short of it by less than one filler sentence.
// depthPercent: share of the filler sentences before the key, 0 to 100. The same seed, keyIndex and digits give the same key.
// haystack: filler text in UTF-8, cut at sentence ends and repeated as needed; empty: our own sentences.
// frame: wraps instruction, text and question as the user's turn, the cue follows it; raw if its name is empty.
// Throws UsageError when length, depth or digits are out of range or length has no room for a single sentence.
PasskeyPrompt makePasskey(const Tokenizer& tokenizer, int length, double depthPercent, int keyIndex, int digits, std::uint64_t seed,
                          std::string_view haystack, const ChatFrame& frame);

struct PasskeyScore {
    double exact = 0;  // 1: the first run of exactly as many digits as the key has is the key; else 0
    double prefix = 0; // share of the key's digits with which the answer's first run of digits starts
};
PasskeyScore scorePasskey(std::string_view answer, std::string_view expected);

} // namespace keepsight
