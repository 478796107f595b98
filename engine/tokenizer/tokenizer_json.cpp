// tokenizer.json → parts of a byte-level BPE tokenizer. Every component that is not understood is refused by name.
#include "engine/data/error.h"
#include "engine/tokenizer/byte_bpe_tokenizer.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <fstream>

namespace keepsight {
namespace {

using Json = nlohmann::json;

constexpr TokenId MaxIds = 1 << 24; // far above every vocabulary; keeps a damaged id from asking for gigabytes

[[noreturn]] void refuse(const std::string& what) { throw EngineError("tokenizer.json: " + what); }

std::string typeOf(const Json& component) {
    return component.is_object() ? component.value("type", std::string("without a type")) : "not an object";
}

bool present(const Json& object, const char* key) { return object.contains(key) && !object[key].is_null(); }

std::string textOr(const Json& object, const char* key, const std::string& otherwise) {
    return present(object, key) ? object[key].get<std::string>() : otherwise;
}
bool flag(const Json& object, const char* key, bool otherwise) { return present(object, key) ? object[key].get<bool>() : otherwise; }

TokenId checkedId(const Json& value, const std::string& what) {
    const auto id = value.get<std::int64_t>();
    if (!value.is_number_integer() || id < 0 || id >= MaxIds)
        refuse(what + " has the id " + value.dump() + ", expected 0 to " + std::to_string(MaxIds - 1));
    return static_cast<TokenId>(id);
}

BpeParts readModel(const Json& model) {
    const std::string type = textOr(model, "type", present(model, "merges") ? "BPE" : "without a type"); // old files leave it out
    if (type != "BPE") refuse("expected the model BPE, found " + type + ", which is not supported");
    if (flag(model, "byte_fallback", false)) refuse("BPE with byte_fallback (SentencePiece-like) is not supported");
    for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"})
        if (!textOr(model, affix, "").empty()) refuse(std::string("BPE with ") + affix + " is not supported");
    if (present(model, "dropout") && model["dropout"].get<double>() != 0.0) refuse("BPE with dropout is not supported");

    BpeParts bpe;
    bpe.ignoreMerges = flag(model, "ignore_merges", false);
    bpe.unknown = textOr(model, "unk_token", "");
    bpe.fuseUnknown = flag(model, "fuse_unk", false);
    for (const auto& [text, value] : model.at("vocab").items()) {
        const auto id = static_cast<std::size_t>(checkedId(value, "token '" + text + "'"));
        if (bpe.tokens.size() <= id) bpe.tokens.resize(id + 1);
        bpe.tokens[id] = text;
    }
    const Json& merges = model.at("merges");
    bpe.merges.reserve(merges.size());
    for (const Json& merge : merges) {
        if (merge.is_array() && merge.size() == 2) {
            bpe.merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
            continue;
        }
        const std::string text = merge.is_string() ? merge.get<std::string>() : std::string();
        const std::size_t space = text.find(' ');
        if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos)
            refuse("expected two parts in merge " + std::to_string(bpe.merges.size()) + ", found " + merge.dump());
        bpe.merges.emplace_back(text.substr(0, space), text.substr(space + 1));
    }
    // GPT-2's own files name an empty unknown token they never use.
    if (std::find(bpe.tokens.begin(), bpe.tokens.end(), bpe.unknown) == bpe.tokens.end()) bpe.unknown.clear();
    return bpe;
}

bool readNormalizer(const Json& normalizer) { // true: NFC
    const std::string type = typeOf(normalizer);
    if (type == "NFC") return true;
    if (type != "Sequence") refuse("normalizer " + type + " is not supported (known are none and NFC)");
    bool nfc = false;
    for (const Json& part : normalizer.at("normalizers"))
        nfc = readNormalizer(part) || nfc;
    return nfc;
}

// Appends the steps; true if ByteLevel was among them.
bool readPreTokenizer(const Json& pre, std::vector<SplitStep>& steps) {
    const std::string type = typeOf(pre);
    if (type == "Sequence") {
        bool byteLevel = false;
        for (const Json& part : pre.at("pretokenizers")) {
            if (byteLevel) refuse("pre-tokenizer " + typeOf(part) + " after ByteLevel is not supported");
            byteLevel = readPreTokenizer(part, steps);
        }
        return byteLevel;
    }
    if (type == "ByteLevel") {
        if (flag(pre, "add_prefix_space", true)) steps.push_back(SplitStep::spaceInFront);
        if (flag(pre, "use_regex", true)) steps.push_back(SplitStep::gpt2);
        return true;
    }
    if (type == "Digits") {
        steps.push_back(flag(pre, "individual_digits", false) ? SplitStep::digitsApart : SplitStep::digitRuns);
        return false;
    }
    if (type == "Split") {
        const std::string behavior = textOr(pre, "behavior", "");
        if (behavior != "Isolated" || flag(pre, "invert", false))
            refuse("pre-tokenizer Split with behavior " + behavior + (flag(pre, "invert", false) ? " inverted" : "") +
                   " is not supported (known is Isolated)");
        const Json& pattern = pre.at("pattern");
        const std::string regex = textOr(pattern, "Regex", "");
        const auto step = stepOfExpression(regex);
        if (!step) refuse("pre-tokenizer Split with an unknown expression: " + (regex.empty() ? pattern.dump() : regex));
        steps.push_back(*step);
        return false;
    }
    refuse("pre-tokenizer " + type + " is not supported (known are ByteLevel, Split, Digits and Sequence)");
}

void readPostProcessor(const Json& post, TokenizerParts& parts) {
    const std::string type = typeOf(post);
    if (type == "ByteLevel") return; // moves offsets only
    if (type == "Sequence") {
        for (const Json& part : post.at("processors"))
            readPostProcessor(part, parts);
        return;
    }
    if (type != "TemplateProcessing")
        refuse("post-processor " + type + " is not supported (known are ByteLevel, TemplateProcessing and Sequence)");
    std::vector<TokenId> before, after;
    bool seenText = false;
    for (const Json& item : post.at("single")) {
        if (item.contains("Sequence")) {
            if (seenText) refuse("post-processor TemplateProcessing repeats the text, which is not supported");
            seenText = true;
            continue;
        }
        const std::string name = item.at("SpecialToken").at("id").get<std::string>();
        auto& side = seenText ? after : before;
        for (const Json& id : post.at("special_tokens").at(name).at("ids"))
            side.push_back(checkedId(id, "special token '" + name + "'"));
    }
    if (!seenText) refuse("post-processor TemplateProcessing leaves out the text");
    parts.before.insert(parts.before.begin(), before.begin(), before.end());
    parts.after.insert(parts.after.end(), after.begin(), after.end());
}

void readDecoder(const Json& decoder) {
    const std::string type = typeOf(decoder);
    if (type == "ByteLevel") return;
    if (type != "Sequence") refuse("decoder " + type + " is not supported (known is ByteLevel)");
    for (const Json& part : decoder.at("decoders"))
        readDecoder(part);
}

std::vector<AddedToken> readAddedTokens(const Json& list) {
    std::vector<AddedToken> added;
    for (const Json& entry : list) {
        AddedToken token;
        token.text = entry.at("content").get<std::string>();
        token.id = checkedId(entry.at("id"), "added token '" + token.text + "'");
        token.special = flag(entry, "special", false);
        token.singleWord = flag(entry, "single_word", false);
        token.lstrip = flag(entry, "lstrip", false);
        token.rstrip = flag(entry, "rstrip", false);
        token.normalized = flag(entry, "normalized", !token.special);
        added.push_back(std::move(token));
    }
    return added;
}

TokenId idOfText(const TokenizerParts& parts, const std::string& text) {
    for (const AddedToken& token : parts.added)
        if (token.text == text) return token.id;
    const auto found = std::find(parts.bpe.tokens.begin(), parts.bpe.tokens.end(), text);
    return found == parts.bpe.tokens.end() || text.empty() ? -1 : static_cast<TokenId>(found - parts.bpe.tokens.begin());
}

// bos_token and eos_token are written in tokenizer_config.json only, as a text or as an object with one.
void readConfigBeside(const std::filesystem::path& path, TokenizerParts& parts) {
    std::ifstream file(path.parent_path() / "tokenizer_config.json", std::ios::binary);
    if (!file) return;
    const Json config = Json::parse(file, nullptr, false);
    if (!config.is_object()) return;
    const auto idOf = [&](const char* key) -> TokenId {
        if (!present(config, key)) return -1;
        const Json& value = config[key];
        if (value.is_string()) return idOfText(parts, value.get<std::string>());
        return value.is_object() && value.contains("content") && value["content"].is_string()
                   ? idOfText(parts, value["content"].get<std::string>())
                   : -1;
    };
    if (parts.bos < 0) parts.bos = idOf("bos_token");
    if (parts.eos < 0) parts.eos = idOf("eos_token");
}

TokenizerParts readParts(const Json& root, const TokenizerSource& source) {
    if (!root.is_object() || !present(root, "model")) refuse("expected an object with a model, found none");
    TokenizerParts parts;
    parts.bpe = readModel(root["model"]);
    if (present(root, "normalizer")) parts.nfc = readNormalizer(root["normalizer"]);
    std::vector<SplitStep> steps;
    if (!present(root, "pre_tokenizer") || !readPreTokenizer(root["pre_tokenizer"], steps))
        refuse("expected a ByteLevel pre-tokenizer, found none; BPE over characters is not supported");
    parts.preTokenizer = PreTokenizer::of(std::move(steps));
    if (present(root, "decoder")) readDecoder(root["decoder"]);
    if (present(root, "post_processor")) readPostProcessor(root["post_processor"], parts);
    if (present(root, "added_tokens")) parts.added = readAddedTokens(root["added_tokens"]);
    parts.bos = source.bos;
    parts.eos = source.eos;
    readConfigBeside(source.path, parts);
    return parts;
}

} // namespace

TokenizerParts partsFromJson(const TokenizerSource& source) {
    std::ifstream file(source.path, std::ios::binary);
    if (!file) throw EngineError("tokenizer.json: cannot read " + source.path.string());
    try {
        return readParts(Json::parse(file), source);
    } catch (const Json::exception& e) {
        throw EngineError("tokenizer.json: " + source.path.string() + " is malformed: " + e.what());
    }
}

} // namespace keepsight
