#include "engine/tokenizer/bpe.h"

#include "engine/data/error.h"
#include "engine/tokenizer/byte_level.h"

#include <algorithm>

namespace keepsight {
namespace {

constexpr std::uint64_t Empty = ~std::uint64_t(0);

std::uint64_t pairKey(TokenId left, TokenId right) { return std::uint64_t(std::uint32_t(left)) << 32 | std::uint32_t(right); }
std::size_t hashOf(std::uint64_t key) { return static_cast<std::size_t>((key * 0x9E3779B97F4A7C15ull) >> 20); }

struct Symbol {
    TokenId id;
    std::int32_t prev, next; // −1: none
    bool merged;             // into its left neighbour
};
struct Candidate {
    std::uint32_t rank;
    std::int32_t at;
    TokenId id;
};
// std heaps put the largest on top: the best rank, then the leftmost, must compare largest.
bool worse(const Candidate& a, const Candidate& b) { return a.rank != b.rank ? a.rank > b.rank : a.at > b.at; }

} // namespace

Bpe::Bpe(const BpeParts& parts) : m_fuseUnknown(parts.fuseUnknown) {
    std::unordered_map<std::string_view, TokenId> idOf;
    idOf.reserve(parts.tokens.size());
    for (std::size_t i = 0; i < parts.tokens.size(); ++i)
        if (!parts.tokens[i].empty()) idOf.insert_or_assign(parts.tokens[i], static_cast<TokenId>(i));

    for (int byte = 0; byte < 256; ++byte) {
        const auto found = idOf.find(byteLetters()[byte]);
        m_byteToken[byte] = found == idOf.end() ? -1 : found->second;
    }
    if (!parts.unknown.empty()) {
        const auto found = idOf.find(parts.unknown);
        if (found == idOf.end()) throw EngineError("tokenizer: the unknown token '" + parts.unknown + "' is not in the vocabulary");
        m_unknown = found->second;
    }
    std::size_t slots = 16;
    while (slots < parts.merges.size() * 2)
        slots *= 2;
    m_keys.assign(slots, Empty);
    m_values.resize(slots);
    std::string joined;
    for (std::size_t rank = 0; rank < parts.merges.size(); ++rank) {
        const auto& [left, right] = parts.merges[rank];
        joined = left + right;
        const auto a = idOf.find(left), b = idOf.find(right), ab = idOf.find(joined);
        if (a == idOf.end() || b == idOf.end() || ab == idOf.end())
            throw EngineError("tokenizer: merge " + std::to_string(rank) + " ('" + left + "' + '" + right +
                              "') needs a token that is not in the vocabulary");
        insertMerge(a->second, b->second, {static_cast<std::uint32_t>(rank), ab->second});
    }
    if (parts.ignoreMerges)
        for (const auto& [text, id] : idOf)
            if (auto bytes = bytesOfLetters(text)) m_whole.emplace(std::move(*bytes), id);
}

const Bpe::Merge* Bpe::merge(TokenId left, TokenId right) const {
    const std::uint64_t key = pairKey(left, right);
    const std::size_t mask = m_keys.size() - 1;
    for (std::size_t slot = hashOf(key) & mask; m_keys[slot] != Empty; slot = (slot + 1) & mask)
        if (m_keys[slot] == key) return &m_values[slot];
    return nullptr;
}

void Bpe::insertMerge(TokenId left, TokenId right, Merge merge) {
    const std::uint64_t key = pairKey(left, right);
    const std::size_t mask = m_keys.size() - 1;
    std::size_t slot = hashOf(key) & mask;
    while (m_keys[slot] != Empty && m_keys[slot] != key)
        slot = (slot + 1) & mask;
    m_keys[slot] = key;
    m_values[slot] = merge;
}

void Bpe::encode(std::string_view bytes, std::vector<TokenId>& out) const {
    if (!m_whole.empty())
        if (const auto found = m_whole.find(std::string(bytes)); found != m_whole.end()) {
            out.push_back(found->second);
            return;
        }

    thread_local std::vector<Symbol> symbols;
    thread_local std::vector<Candidate> heap;
    symbols.clear();
    heap.clear();
    bool afterUnknown = false;
    for (const char c : bytes) {
        TokenId id = m_byteToken[static_cast<unsigned char>(c)];
        const bool unknown = id < 0;
        if (unknown && (m_unknown < 0 || (afterUnknown && m_fuseUnknown))) continue;
        if (unknown) id = m_unknown;
        afterUnknown = unknown;
        const auto at = static_cast<std::int32_t>(symbols.size());
        symbols.push_back({id, at - 1, at + 1, false});
    }
    if (symbols.empty()) return;
    symbols.back().next = -1;

    const auto consider = [&](std::int32_t left, std::int32_t right) {
        if (const Merge* m = merge(symbols[left].id, symbols[right].id)) {
            heap.push_back({m->rank, left, m->id});
            return true;
        }
        return false;
    };
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i)
        consider(static_cast<std::int32_t>(i), static_cast<std::int32_t>(i + 1));
    std::make_heap(heap.begin(), heap.end(), worse);

    while (!heap.empty()) {
        std::pop_heap(heap.begin(), heap.end(), worse);
        const Candidate best = heap.back();
        heap.pop_back();
        Symbol& left = symbols[best.at];
        if (left.merged || left.next < 0) continue;
        Symbol& right = symbols[left.next];
        const Merge* m = merge(left.id, right.id);
        if (m == nullptr || m->id != best.id) continue; // one of the two has changed since
        left.id = best.id;
        left.next = right.next;
        right.merged = true;
        if (left.next >= 0) symbols[left.next].prev = best.at;
        if (left.prev >= 0 && consider(left.prev, best.at)) std::push_heap(heap.begin(), heap.end(), worse);
        if (left.next >= 0 && consider(best.at, left.next)) std::push_heap(heap.begin(), heap.end(), worse);
    }
    for (std::int32_t at = 0; at >= 0; at = symbols[at].next)
        out.push_back(symbols[at].id);
    if (symbols.capacity() > (1u << 16)) { // one giant word must not hold its memory for the life of the thread
        std::vector<Symbol>().swap(symbols);
        std::vector<Candidate>().swap(heap);
    }
}

} // namespace keepsight
