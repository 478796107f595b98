#include "widgets/tokens/tokens_model.h"

#include <QCoreApplication>
#include <QLocale>
#include <algorithm>

namespace keepsight {
namespace {

constexpr int MostTokensPerCharacter = 4; // UTF-8: four bytes

QString tr(const char* text) { return QCoreApplication::translate("keepsight::TokensModel", text); }

bool continues(unsigned char byte) { return (byte & 0xc0) == 0x80; }

// Length of the character that begins at `at`: 0 if it never becomes one, −1 if the bytes end before it does.
int characterLength(const std::string& bytes, std::size_t at) {
    const auto lead = static_cast<unsigned char>(bytes[at]);
    const int length = lead < 0x80 ? 1 : lead >= 0xc2 && lead < 0xe0 ? 2 : lead >= 0xe0 && lead < 0xf0 ? 3 : lead >= 0xf0 && lead < 0xf5 ? 4 : 0;
    for (int i = 1; i < length; ++i) {
        if (at + static_cast<std::size_t>(i) >= bytes.size()) return -1;
        const auto next = static_cast<unsigned char>(bytes[at + static_cast<std::size_t>(i)]);
        if (!continues(next)) return 0;
        // Overlong forms, surrogates and what lies beyond U+10FFFF are no characters.
        if (i == 1 && ((lead == 0xe0 && next < 0xa0) || (lead == 0xed && next >= 0xa0) || (lead == 0xf0 && next < 0x90) || (lead == 0xf4 && next >= 0x90))) return 0;
    }
    return length;
}

QString hexByte(unsigned char byte) { return QStringLiteral("⟨%1⟩").arg(byte, 2, 16, QLatin1Char('0')).toUpper(); }

bool isSpace(const std::string& bytes) {
    return !bytes.empty() && std::ranges::all_of(bytes, [](char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; });
}

const std::vector<TokenRecord>& generatedOf(const Trace& trace, LaneIndex lane) {
    static const std::vector<TokenRecord> none;
    return lane.value >= 0 && static_cast<std::size_t>(lane.value) < trace.lanes.size() ? trace.lanes[static_cast<std::size_t>(lane.value)].generated : none;
}

} // namespace

QString shownBytes(const std::string& bytes, bool symbols, std::size_t* used) {
    QString out;
    std::size_t at = 0;
    const bool blank = isSpace(bytes);
    while (at < bytes.size()) {
        const auto byte = static_cast<unsigned char>(bytes[at]);
        const int length = characterLength(bytes, at);
        if (length < 0) break;
        if (byte == '\n') out += symbols ? QStringLiteral("⏎") : QString();
        else if (byte == '\t') out += symbols ? QStringLiteral("⇥") : QStringLiteral("    ");
        else if (byte == '\r') out += symbols ? QStringLiteral("␍") : QString();
        else if (byte == ' ' && blank && symbols) out += QStringLiteral("␣");
        else if (length == 0 || byte < 0x20 || byte == 0x7f) out += hexByte(byte);
        else out += QString::fromUtf8(bytes.data() + at, length);
        at += static_cast<std::size_t>(std::max(1, length));
    }
    if (used) *used = at;
    return out;
}

std::size_t TokensModel::setText(const Trace* trace, LaneIndex lane, bool symbols) {
    const std::string run = trace ? trace->run.createdUtc + '\n' + trace->run.commandLine : std::string();
    const std::size_t total = trace ? trace->tokens.size() + generatedOf(*trace, lane).size() : 0;
    const auto idAt = [&](std::size_t p) { return p < trace->tokens.size() ? trace->tokens[p].id : generatedOf(*trace, lane)[p - trace->tokens.size()].id; };
    bool same = trace && run == m_run && symbols == m_symbols && total >= m_ids.size();
    for (std::size_t p = 0; same && p < m_ids.size(); ++p)
        same = m_ids[p] == idAt(p);
    m_run = run;
    m_lane = lane;
    m_symbols = symbols;
    if (!same) {
        m_clusters.clear();
        m_clusterOf.clear();
        m_ids.clear();
    }
    if (!trace || total == m_ids.size()) {
        if (!trace || !same) m_state.clear(), m_share.clear();
        return m_clusters.size();
    }
    // The last pieces may have been cut inside a character that is whole now.
    std::size_t kept = m_clusters.size();
    for (int i = 0; i < MostTokensPerCharacter && kept > 0; ++i)
        --kept;
    m_clusters.resize(kept);
    const auto from = static_cast<std::size_t>(kept == 0 ? 0 : m_clusters.back().first + m_clusters.back().count);
    m_ids.resize(from);
    m_clusterOf.resize(from);
    appendClusters(*trace, lane, symbols);
    m_state.resize(m_ids.size(), TokenState::ahead);
    m_share.resize(m_ids.size(), NotMeasured);
    return kept;
}

void TokensModel::appendClusters(const Trace& trace, LaneIndex lane, bool symbols) {
    const std::vector<TokenRecord>& own = generatedOf(trace, lane);
    const std::size_t total = trace.tokens.size() + own.size();
    const auto token = [&](std::size_t p) -> const TokenRecord& { return p < trace.tokens.size() ? trace.tokens[p] : own[p - trace.tokens.size()]; };
    for (std::size_t p = m_ids.size(); p < total;) {
        TokenCluster cluster;
        cluster.first = static_cast<Position>(p);
        std::string bytes = token(p).bytes;
        cluster.weights = {static_cast<int>(bytes.size())};
        std::size_t used = 0;
        cluster.text = shownBytes(bytes, symbols, &used);
        // Joins tokens until the character is whole; bytes that never become one are shown as they are.
        if (used < bytes.size()) {
            std::string joined = bytes;
            std::vector<int> weights = cluster.weights;
            for (std::size_t next = p + 1; next < std::min(total, p + MostTokensPerCharacter + 1); ++next) {
                joined += token(next).bytes;
                weights.push_back(static_cast<int>(token(next).bytes.size()));
                std::size_t whole = 0;
                // The first unfinished character decides, even if the last token ends inside another one.
                const int length = characterLength(joined, used);
                if (length == 0) break;
                if (length < 0) continue;
                const QString text = shownBytes(joined, symbols, &whole);
                if (whole < joined.size()) continue;
                cluster.text = text;
                cluster.weights = weights;
                cluster.count = static_cast<int>(weights.size());
                bytes = joined;
                used = whole;
                break;
            }
            for (; used < bytes.size(); ++used)
                cluster.text += hexByte(static_cast<unsigned char>(bytes[used]));
        }
        cluster.whitespace = isSpace(bytes);
        cluster.leadingSpace = !bytes.empty() && bytes.front() == ' ' && !cluster.whitespace;
        cluster.lineBreaks = static_cast<int>(std::min<std::ptrdiff_t>(2, std::ranges::count(bytes, '\n')));
        for (int i = 0; i < cluster.count; ++i) {
            m_ids.push_back(token(p + static_cast<std::size_t>(i)).id);
            m_clusterOf.push_back(m_clusters.size());
        }
        p += static_cast<std::size_t>(cluster.count);
        m_clusters.push_back(std::move(cluster));
    }
}

void TokensModel::setHolding(const Trace* trace, const Focus& focus, HoldingScope scope) {
    std::ranges::fill(m_state, TokenState::ahead);
    std::ranges::fill(m_share, NotMeasured);
    const auto lane = static_cast<std::size_t>(focus.lane.value);
    if (!trace || focus.lane.value < 0 || lane >= trace->lanes.size()) return;
    const Retention& retention = trace->lanes[lane].retention;
    if (retention.layers() < 1 || retention.heads() < 1 || trace->lanes[lane].steps.empty()) return;
    const int step = std::clamp(focus.step.value, 0, trace->lanes[lane].steps.back().step.value);
    const int layer = std::clamp(focus.layer.value, 0, retention.layers() - 1), head = std::clamp(focus.head.value, 0, retention.heads() - 1);
    const bool all = scope == HoldingScope::everything;
    const int layerEnd = all ? retention.layers() : layer + 1, headBegin = scope == HoldingScope::head ? head : 0;
    const int headEnd = scope == HoldingScope::head ? head + 1 : retention.heads();
    const auto reached = static_cast<std::size_t>(std::min(retention.positionsAt(Step{step}), positions()));
    std::vector<int> holders(reached, 0);
    for (int l = all ? 0 : layer; l < layerEnd; ++l)
        for (int h = headBegin; h < headEnd; ++h) {
            const auto evicted = retention.evictedAt(LayerIndex{l}, HeadIndex{h});
            for (std::size_t p = 0; p < reached; ++p)
                holders[p] += evicted[p] > step;
        }
    const int possible = (layerEnd - (all ? 0 : layer)) * (headEnd - headBegin);
    for (std::size_t p = 0; p < reached; ++p) {
        m_share[p] = static_cast<double>(holders[p]) / possible;
        m_state[p] = holders[p] > 0 ? TokenState::held : TokenState::evicted;
    }
}

QString TokensModel::toolTip(const Trace& trace, const Focus& focus, Position position) const {
    const TokenRecord* token = trace.tokenAt(focus.lane, position);
    if (!token) return {};
    const QLocale locale;
    std::size_t used = 0;
    QString text = shownBytes(token->bytes, true, &used);
    for (; used < token->bytes.size(); ++used)
        text += hexByte(static_cast<unsigned char>(token->bytes[used]));
    QStringList lines{tr("Position %1 · “%2” · id %3").arg(locale.toString(position), text, locale.toString(token->id))};
    const auto lane = static_cast<std::size_t>(std::max(0, focus.lane.value));
    if (lane >= trace.lanes.size() || state(position) == TokenState::ahead) {
        lines << tr("Not in the cache at this step");
        return lines.join(QLatin1Char('\n'));
    }
    const Retention& retention = trace.lanes[lane].retention;
    const int step = std::clamp(focus.step.value, 0, trace.lanes[lane].steps.back().step.value);
    const int holders = retention.holdersAt(Step{step}, position), all = retention.layers() * retention.heads();
    lines << tr("Held by %1 of %2 layers × heads (%3 %)").arg(holders).arg(all).arg(locale.toString(100.0 * holders / std::max(1, all), 'f', 0));
    // Heads that hold it, layer by layer, ten to a line.
    for (int from = 0; from < retention.layers(); from += 10) {
        const int to = std::min(from + 10, retention.layers());
        QStringList counts;
        for (int l = from; l < to; ++l) {
            int heads = 0;
            for (int h = 0; h < retention.heads(); ++h)
                heads += retention.holds(Step{step}, LayerIndex{l}, HeadIndex{h}, position);
            counts << QString::number(heads);
        }
        lines << tr("Heads in layers %1–%2:  %3").arg(from).arg(to - 1).arg(counts.join(QLatin1Char(' ')));
    }
    return lines.join(QLatin1Char('\n'));
}

} // namespace keepsight
