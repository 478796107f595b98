// The text of a lane as runs to lay out, and how much of the cache still holds each token at the focused step.
#pragma once

#include "engine/data/trace.h"
#include "widgets/base/focus_model.h"

#include <QString>
#include <cstdint>
#include <vector>

namespace keepsight {

enum class HoldingScope { everything, layer, head }; // all layers and heads | the focused layer | the focused head

enum class TokenState : std::uint8_t {
    held,    // by at least one layer and head of the scope
    evicted, // by all of them
    ahead    // not reached at this step: no cache entry yet
};

// One or more neighbouring tokens drawn as one piece: tokens that share a character cannot be drawn apart.
struct TokenCluster {
    Position first = 0;
    int count = 1;
    QString text;            // shown; invalid bytes as ⟨E2⟩, control characters as ⟨00⟩
    bool leadingSpace = false; // a line may break before it, and then the space is not drawn
    bool whitespace = false; // nothing but white space
    int lineBreaks = 0;      // after it
    std::vector<int> weights; // [count] share of the cluster's width, when count > 1
};

class TokensModel {
public:
    // Keeps what is already there when the same text only grew; returns the number of clusters kept.
    std::size_t setText(const Trace* trace, LaneIndex lane, bool symbols);
    void setHolding(const Trace* trace, const Focus& focus, HoldingScope scope);

    const std::vector<TokenCluster>& clusters() const { return m_clusters; }
    Position positions() const { return static_cast<Position>(m_ids.size()); }
    std::size_t clusterOf(Position position) const { return m_clusterOf[static_cast<std::size_t>(position)]; }

    TokenState state(Position position) const { return m_state[static_cast<std::size_t>(position)]; }
    double share(Position position) const { return m_share[static_cast<std::size_t>(position)]; } // of the scope, 0 … 1; NaN ahead
    QString toolTip(const Trace& trace, const Focus& focus, Position position) const;

private:
    void appendClusters(const Trace& trace, LaneIndex lane, bool symbols);

    std::vector<TokenCluster> m_clusters;
    std::vector<std::size_t> m_clusterOf; // [positions]
    std::vector<TokenId> m_ids;           // [positions]
    std::vector<TokenState> m_state;      // [positions]
    std::vector<double> m_share;          // [positions]
    LaneIndex m_lane{-2};
    std::string m_run;
    bool m_symbols = true;
};

// Whole characters at the start of bytes that may end inside one; `used` is how many bytes they take.
// A byte that can never start or continue a character counts as used and is shown as ⟨XX⟩.
QString shownBytes(const std::string& bytes, bool symbols, std::size_t* used);

} // namespace keepsight
