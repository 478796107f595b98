// Why a policy kept or dropped one token in one layer and KV head.
#pragma once

#include "engine/data/ids.h"

#include <cstdint>
#include <limits>
#include <string>

namespace keepsight {

struct Explanation {
    Position position = 0;      // the token asked about
    LayerIndex layer;
    HeadIndex head;
    Step step;                  // of the selection: 1 right after the prefill, then the decode step that chose
    bool found = false;         // false: the head no longer held the token at that selection, or nothing was chosen there
    bool kept = false;
    bool stored = false;        // nothing is dropped here: kept says whether the step's queries attended to the token
    std::string protectedBy;    // "sink", "recent", "rule" (the policy's own rule, no score); empty: it had to compete
    double score = std::numeric_limits<double>::quiet_NaN(); // as the policy ranks it, higher is kept
    int rank = 0, candidates = 0;      // 1 = best among those that had to compete in this head; 0: it did not compete
    int slots = 0;                     // places that competing tokens could win in this head
    double cutoff = std::numeric_limits<double>::quiet_NaN(); // score of the last one that won a place
    double margin = std::numeric_limits<double>::quiet_NaN(); // score − cutoff (kept: of the best that lost)
    Position lastKept = -1;     // the token that holds the last place: for a dropped token, who took its slot
    int budget = 0;             // entries this head kept
    int budgetNeeded = -1;      // the smallest budget (tokens per head) that keeps the token; −1: unknown, or no budget does
    std::string note;           // what else a person should know, one sentence
};

} // namespace keepsight
