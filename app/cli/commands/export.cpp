#include "app/cli/commands/commands.h"
#include "app/cli/exit_codes.h"
#include "app/cli/output.h"
#include "engine/data/error.h"
#include "engine/data/picture.h"
#include "engine/data/trace_file.h"

#include <algorithm>
#include <set>

namespace keepsight::cli {
namespace {

namespace fs = std::filesystem;

struct Options {
    std::string file, figure, lane, format, out, folder;
    int step = -1, layer = -1, head = -1;
    bool perQueryHead = false;
};

std::string encoded(const PictureData& data, const std::string& format) {
    if (format == "npy") return toNpy(data);
    return format == "json" ? toJson(data) : toCsv(data);
}

std::string listOf(const std::vector<std::string>& names) {
    std::string out;
    for (const std::string& name : names)
        out += (out.empty() ? "" : ", ") + name;
    return out;
}

LaneIndex laneNamed(const Trace& trace, const std::string& label) {
    if (label.empty()) return LaneIndex{0};
    std::vector<std::string> labels;
    for (std::size_t i = 0; i < trace.lanes.size(); ++i) {
        if (trace.lanes[i].label == label) return LaneIndex{static_cast<std::int32_t>(i)};
        labels.push_back(trace.lanes[i].label);
    }
    throw UsageError("--lane: the session has no lane '" + label + "'; it has " + listOf(labels));
}

void exportAll(const Trace& trace, const Options& options, PictureFocus focus, const std::string& format) {
    fs::create_directories(options.folder);
    std::set<std::string> written;
    for (const std::string& name : pictureNames())
        for (std::size_t lane = 0; lane < std::max<std::size_t>(1, trace.lanes.size()); ++lane) {
            if (!options.lane.empty() && laneNamed(trace, options.lane).value != static_cast<std::int32_t>(lane)) continue;
            focus.lane = LaneIndex{static_cast<std::int32_t>(lane)};
            PictureFocus wanted = focus;
            if (name == "attention") { // one head at a time: the first unless asked otherwise
                wanted.layer = LayerIndex{std::max(0, focus.layer.value)};
                wanted.head = HeadIndex{std::max(0, focus.head.value)};
            }
            try {
                const PictureData data = picture(trace, name, wanted);
                if (!written.insert(data.name).second) continue; // one picture for all lanes
                const fs::path file = fs::path(options.folder) / (data.name + "." + format);
                writeFileAtomically(file, encoded(data, format));
                writeOutput("-", file.string() + "\n");
            } catch (const UsageError&) { // nothing of that kind was recorded
            }
        }
    if (!trace.measurements.empty()) {
        const fs::path file = fs::path(options.folder) / (format == "json" ? "results.json" : "results.csv");
        writeFileAtomically(file, format == "json" ? measurementsToJson(trace.measurements) : measurementsToCsv(trace.measurements));
        writeOutput("-", file.string() + "\n");
    }
}

} // namespace

RunCommand addExport(CLI::App& app) {
    const auto options = std::make_shared<Options>();
    app.add_option("FILE", options->file, "A .keep session")->required();
    auto* figure = app.add_option("--figure", options->figure, "Which picture: " + listOf(pictureNames()));
    app.add_option("--lane", options->lane, "Label of the lane; default: the first");
    app.add_option("--step", options->step, "Step; -1: the last")->capture_default_str();
    app.add_option("--layer", options->layer, "Layer; -1: the overview where there is one")->capture_default_str();
    app.add_option("--head", options->head, "KV head, or query head with --per-query-head")->capture_default_str();
    app.add_flag("--per-query-head", options->perQueryHead, "--head counts query heads");
    app.add_option("--format", options->format, "csv, npy or json; default: as the file's name ends, else csv")
        ->check(CLI::IsMember({"csv", "npy", "json"}));
    app.add_option("--out", options->out, "File to write; default: stdout")->needs(figure);
    app.add_option("--out-dir", options->folder, "Write every picture the session holds into this folder")->excludes(figure);
    return [options](const Shell&) {
        if (options->figure.empty() && options->folder.empty())
            throw UsageError("name a picture with --figure (" + listOf(pictureNames()) + "), or a folder with --out-dir");
        const auto trace = loadTrace(options->file);
        PictureFocus focus;
        focus.lane = laneNamed(*trace, options->lane);
        focus.step = Step{options->step};
        focus.layer = LayerIndex{options->layer};
        focus.head = HeadIndex{options->head};
        focus.perQueryHead = options->perQueryHead;
        std::string format = options->format;
        if (format.empty()) {
            const std::string extension = fs::path(options->out).extension().string();
            format = extension == ".npy" ? "npy" : extension == ".json" ? "json" : "csv";
        }
        if (!options->folder.empty())
            exportAll(*trace, *options, focus, format);
        else
            writeOutput(options->out.empty() ? "-" : options->out, encoded(picture(*trace, options->figure, focus), format));
        return ExitDone;
    };
}

} // namespace keepsight::cli
