// The numbers behind every picture, without Qt: views draw them, both programs export them, so all agree.
#pragma once

#include "engine/data/trace.h"

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace keepsight {

struct PictureAxis {
    std::string name, unit;          // "key position", "tokens"
    double first = 0, step = 1;      // value of index i = first + i · step, unless labels are given
    std::vector<std::string> labels; // categorical axes
};

struct PictureData {
    std::string name;                // "attention-A-L12-H1", usable as a file name
    std::string valueName, unit;     // of the cells
    std::vector<std::size_t> shape;  // [rows, cols] or [layers, heads, positions]; for curves [points, series]
    std::vector<PictureAxis> axes;   // one per dimension; for curves axis 1 labels the series
    std::vector<double> values;      // row-major, NaN = missing
    std::vector<double> x;           // curves: x of each point
    std::string xName, xUnit;
    std::vector<std::string> notes;  // policy, budget, model: what a caption should say
};

struct PictureFocus {
    LaneIndex lane{0};
    Step step{-1};                   // −1: the last one
    LayerIndex layer{-1};            // retained: −1 = overview of all layers and heads
    HeadIndex head{-1};              // KV head, or query head if perQueryHead
    bool perQueryHead = false;
};

// "retained" [layers, heads, positions], share of held tokens 0/1, or for one head [steps, positions] · "attention" [rows, cols] mean weights, prefill rows
// above the lane's own, evicted columns NaN · "needle" [depths, lengths] mean score · "tokens" [positions, lanes] share of layers × heads holding ·
// "ppl" | "tpot" | "memory" curves, one series per lane: running perplexity, ms per decode step, stored KV bytes · "pareto" [points, 2]: bytes, ppl of ppl rows.
// Throws UsageError: unknown name (lists them), index out of range (says the range), or nothing of that kind recorded.
const std::vector<std::string>& pictureNames();
PictureData picture(const Trace& trace, std::string_view name, const PictureFocus& focus = {});

std::string toCsv(const PictureData& data);  // header line, then one line per point or cell; full double precision, "." decimals
std::string toNpy(const PictureData& data);  // NPY 1.0, '<f8', C order
std::string toJson(const PictureData& data); // everything needed to draw it again; NaN as null
std::string measurementsToCsv(const std::vector<Measurement>& rows);
std::string measurementsToJson(const std::vector<Measurement>& rows, int indent = 1); // JSON array of objects in field order

// Writes a temporary beside `path`, flushes it to disk, renames it. Throws EngineError naming path and cause (full disk, no permission).
void writeFileAtomically(const std::filesystem::path& path, std::string_view bytes);

} // namespace keepsight
