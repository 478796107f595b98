// Cuts text into the pieces that BPE never merges across. The known split expressions are scanned by hand, with no regex engine.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace keepsight {

enum class SplitStep {
    digitsApart,  // Digits: each numeric character on its own
    digitRuns,    // Digits: runs of numeric characters
    spaceInFront, // ByteLevel's add_prefix_space: a piece that does not start with a space gets one
    gpt2,         // contractions, ` ?letters`, ` ?numbers`, ` ?others`, spaces
    llama3,       // numbers in groups of up to three, line ends kept with what precedes them
    qwen2,        // as llama3 with single numbers
};

// The step a split expression of tokenizer.json means; nullopt: unknown.
std::optional<SplitStep> stepOfExpression(std::string_view regex);

class PreTokenizer {
public:
    PreTokenizer() = default;
    PreTokenizer(std::string name, std::vector<SplitStep> steps) : m_name(std::move(name)), m_steps(std::move(steps)) {}
    // By GGUF's tokenizer.ggml.pre; throws EngineError naming an unknown one and the known ones.
    static PreTokenizer named(std::string_view name);
    static PreTokenizer of(std::vector<SplitStep> steps); // named after the model family whose steps these are

    const std::string& name() const { return m_name; }
    using Sink = std::function<void(std::string_view piece)>;
    void split(std::string_view utf8, const Sink& sink) const; // valid UTF-8; pieces in order

private:
    void run(std::size_t step, std::string_view text, const Sink& sink) const;
    std::string m_name;
    std::vector<SplitStep> m_steps;
};

} // namespace keepsight
