// keepsight: the desktop tool; with `export` and --screenshot it draws figures of sessions without a display.
#include "app/calm_threads.h"
#include "app/gui/export_dialog.h"
#include "app/gui/figure_commands.h"
#include "app/gui/main_window.h"
#include "app/gui/message_bar.h"
#include "app/gui/theme.h"
#include "engine/data/error.h"

#include <CLI/CLI.hpp>
#include <QApplication>
#include <QTimer>

#include <cstdio>
#include <cstdlib>

using namespace keepsight;

namespace {

struct Arguments {
    std::string open, screenshot, view = "window", size = "1600x1000", theme, lane;
    std::string file, figure, width = "single", format, out;
    int step = -1, layer = -1, head = -1, position = -1;
    FocusOptions focus() const {
        return {.step = step, .layer = layer, .head = head, .position = position, .laneLetter = QString::fromStdString(lane)};
    }
};

void addFocus(CLI::App& app, Arguments& a) {
    app.add_option("--lane", a.lane, "lane letter (default: A)");
    app.add_option("--step", a.step, "step (default: the last one)")->check(CLI::NonNegativeNumber);
    app.add_option("--layer", a.layer, "layer, from 0")->check(CLI::NonNegativeNumber);
    app.add_option("--head", a.head, "KV head, from 0")->check(CLI::NonNegativeNumber);
}

bool hasDisplay() {
    for (const char* name : {"DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"})
        if (const char* value = std::getenv(name); value && *value) return true;
    return false;
}

int complain(const std::exception& e) {
    std::fprintf(stderr, "keepsight: %s\n", e.what());
    return dynamic_cast<const UsageError*>(&e) ? 2 : 1;
}

} // namespace

int main(int argc, char** argv) {
    Arguments a;
    CLI::App cli("Keepsight: what a KV-cache compression policy keeps, what it loses, and what that buys", "keepsight");
    cli.set_version_flag("--version", "keepsight " + Engine::version());
    cli.add_option("MODEL|FILE.keep", a.open, "a .gguf file, a model directory, a session or a text (default: the model that set-up installed)");
    cli.add_option("--screenshot", a.screenshot, "write a PNG of the session and exit; needs no display and no model");
    cli.add_option("--view", a.view, "of --screenshot: window (all of it), or tokens, retained, attention, curves, needle, results");
    cli.add_option("--size", a.size, "of --screenshot, in pixels")->capture_default_str();
    cli.add_option("--theme", a.theme, "system, light or dark")->check(CLI::IsMember({"system", "light", "dark"}));
    cli.add_option("--position", a.position, "focused token, from 0")->check(CLI::NonNegativeNumber);
    addFocus(cli, a);
    CLI::App* exporting = cli.add_subcommand("export", "draw or write one figure of a session; needs no display and no model");
    exporting->add_option("FILE.keep", a.file, "the session")->required();
    exporting->add_option("--figure", a.figure, "retained, attention, needle, tokens, ppl, tpot, memory or pareto")->required();
    exporting->add_option("--width", a.width, "single (3.25 in), text (5.5 in), double (6.75 in) or inches")->capture_default_str();
    exporting->add_option("--format", a.format, "pdf, svg, png, csv, npy or json (default: as the name of --out says)");
    exporting->add_option("--out", a.out, "file to write")->required();
    addFocus(*exporting, a);
    try {
        cli.parse(argc, argv);
    } catch (const CLI::ParseError& e) {
        return cli.exit(e) == 0 ? 0 : 2;
    }

    const bool headless = *exporting || !a.screenshot.empty();
    if (!hasDisplay()) {
        if (!headless) {
            std::fprintf(stderr, "keepsight: there is no display; use \"keepsight export\" or --screenshot, or set QT_QPA_PLATFORM=offscreen.\n");
            return 1;
        }
        setenv("QT_QPA_PLATFORM", "offscreen", 1);
    }
    QApplication app(argc, argv);
    QApplication::setApplicationName("keepsight");
    QApplication::setApplicationDisplayName("");
    QApplication::setOrganizationName("keepsight");
    QApplication::setApplicationVersion(QString::fromStdString(Engine::version()));
    initResources();
    rememberSystemPalette();
    const Theme theme = a.theme == "dark" ? Theme::dark : a.theme == "light" ? Theme::light : a.theme == "system" ? Theme::system : headless ? Theme::light : Settings().theme();
    applyTheme(theme);

    try {
        if (*exporting) {
            exportSession(QString::fromStdString(a.file), QString::fromStdString(a.figure), a.focus(), QString::fromStdString(a.width), QString::fromStdString(a.format),
                          QString::fromStdString(a.out));
            return 0;
        }
        if (!a.screenshot.empty()) {
            screenshot(QString::fromStdString(a.open), QString::fromStdString(a.view), parseSize(QString::fromStdString(a.size)), a.focus(), QString::fromStdString(a.screenshot));
            return 0;
        }
        const bool attended = QGuiApplication::platformName() != "offscreen";
        MainWindow window({.restoreLayout = attended, .askBeforeClosing = attended, .size = {}});
        window.show();
        QTimer::singleShot(0, &window, [&] {
            const QString path = QString::fromStdString(a.open);
            if (!path.isEmpty()) window.openAnything(path);
            window.firstLaunch(!path.isEmpty()); // the sample only where nothing else was asked for
            window.stallMeter()->reset();
        });
        const int code = QApplication::exec();
        if (qEnvironmentVariableIntValue("KEEPSIGHT_STALL") > 0) std::fprintf(stderr, "longest stall of the event loop: %.1f ms\n", window.stallMeter()->longestMs());
        return code;
    } catch (const std::exception& e) {
        return complain(e);
    }
}
