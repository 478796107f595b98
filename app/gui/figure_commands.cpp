#include "app/gui/figure_commands.h"

#include "app/gui/export_dialog.h"
#include "app/gui/main_window.h"
#include "app/gui/message_bar.h"
#include "engine/data/error.h"
#include "widgets/base/trace_view.h"

#include <QBuffer>
#include <QElapsedTimer>
#include <QEventLoop>
#include <QFileInfo>
#include <QTimer>

namespace keepsight {

namespace {

void waitFor(int milliseconds) {
    QEventLoop loop;
    QTimer::singleShot(milliseconds, &loop, &QEventLoop::quit);
    loop.exec();
}

void writePicture(QWidget& widget, const QString& out) {
    QByteArray bytes;
    QBuffer buffer(&bytes);
    buffer.open(QIODevice::WriteOnly);
    if (!widget.grab().save(&buffer, "PNG")) throw EngineError("The picture could not be encoded as PNG.");
    writeFileAtomically(out.toStdString(), std::string_view(bytes.constData(), std::size_t(bytes.size())));
}

Focus focusOf(const Trace& trace, const FocusOptions& options) {
    Focus focus;
    focus.lane = laneOf(trace, options);
    focus.step = Step(options.step >= 0 ? options.step : std::max(0, trace.lastStep()));
    if (options.layer >= 0) focus.layer = LayerIndex(options.layer);
    if (options.head >= 0) focus.head = HeadIndex(options.head);
    focus.position = options.position;
    return focus;
}

} // namespace

LaneIndex laneOf(const Trace& trace, const FocusOptions& options) {
    std::string names;
    for (std::size_t i = 0; i < trace.lanes.size(); ++i) {
        if (QString::fromStdString(trace.lanes[i].label).compare(options.laneLetter, Qt::CaseInsensitive) == 0) return LaneIndex(int(i));
        names += (i ? ", " : "") + trace.lanes[i].label;
    }
    if (!options.laneLetter.isEmpty()) {
        bool ok = false;
        const int number = options.laneLetter.toInt(&ok);
        if (ok && number >= 0 && number < int(trace.lanes.size())) return LaneIndex(number);
        throw UsageError("--lane: expected one of " + names + ", found \"" + options.laneLetter.toStdString() + "\".");
    }
    return LaneIndex(0);
}

void exportSession(const QString& file, const QString& figure, const FocusOptions& options, const QString& width, const QString& format, const QString& out) {
    const double inches = figureWidth(width);
    const FigureFormat kind = figureFormat(format.isEmpty() ? QFileInfo(out).suffix().toLower() : format);
    const auto trace = loadTrace(file.toStdString());
    PictureFocus focus;
    focus.lane = laneOf(*trace, options);
    focus.step = Step(options.step);
    focus.layer = LayerIndex(options.layer);
    focus.head = HeadIndex(options.head);
    if (figure == "attention") { // one head's map: the first one if none is named
        if (options.layer < 0) focus.layer = LayerIndex(0);
        if (options.head < 0) focus.head = HeadIndex(0);
    }
    exportFigure(*makeFigure(figure, trace, focus), kind, inches, out);
}

QSize parseSize(const QString& text) {
    const QStringList parts = text.toLower().split('x');
    bool w = false, h = false;
    const QSize size = parts.size() == 2 ? QSize(parts[0].toInt(&w), parts[1].toInt(&h)) : QSize();
    if (!w || !h || size.width() < 100 || size.height() < 100 || size.width() > 8192 || size.height() > 8192)
        throw UsageError("--size: expected WIDTHxHEIGHT from 100x100 to 8192x8192, found \"" + text.toStdString() + "\".");
    return size;
}

void screenshot(const QString& file, const QString& view, const QSize& size, const FocusOptions& options, const QString& out) {
    const auto trace = file.isEmpty() ? nullptr : loadTrace(file.toStdString());
    if (view == "window") {
        MainWindow window({.restoreLayout = false, .askBeforeClosing = false, .size = size});
        window.show();
        if (trace) {
            window.session()->open(file);
            QElapsedTimer since;
            since.start();
            while (!window.session()->shown() && since.elapsed() < 60000)
                waitFor(20);
            waitFor(200);
            window.focusModel()->set(focusOf(*trace, options));
        }
        waitFor(600);
        writePicture(window, out);
        return;
    }
    std::string names = "window";
    for (const ViewEntry& entry : views()) {
        names += std::string(", ") + entry.id;
        if (view != entry.id) continue;
        FocusModel focus;
        if (trace) focus.set(focusOf(*trace, options));
        const std::unique_ptr<TraceView> widget(entry.make(nullptr));
        widget->resize(size);
        widget->setTrace(trace);
        widget->follow(focus);
        widget->show();
        waitFor(300);
        writePicture(*widget, out);
        return;
    }
    throw UsageError("--view: expected one of " + names + ", found \"" + view.toStdString() + "\".");
}

} // namespace keepsight
