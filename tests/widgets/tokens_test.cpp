#include "tests/support/trace_builder.h"
#include "widgets/base/color_scale.h"
#include "widgets/tokens/tokens_area.h"
#include "widgets/tokens/tokens_figure.h"
#include "widgets/tokens/tokens_layout.h"
#include "widgets/tokens/tokens_view.h"

#include <QElapsedTimer>
#include <QSignalSpy>
#include <QtTest>

using namespace keepsight;

namespace {

std::shared_ptr<Trace> withTokens(const std::vector<std::string>& pieces) {
    auto trace = std::make_shared<Trace>();
    for (const std::string& piece : pieces) {
        TokenRecord token;
        token.position = static_cast<Position>(trace->tokens.size());
        token.id = token.position + 100;
        token.bytes = piece;
        trace->tokens.push_back(token);
    }
    trace->prefillLength = static_cast<Position>(pieces.size());
    trace->lanes.resize(1);
    return trace;
}

QStringList texts(const TokensModel& model) {
    QStringList out;
    for (const TokenCluster& cluster : model.clusters())
        out << cluster.text;
    return out;
}

double tenPerLetter(const QString& text) { return 10.0 * static_cast<double>(text.size()); }

} // namespace

class TokensTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void bytesBecomeText_data() {
        QTest::addColumn<QByteArrayList>("pieces");
        QTest::addColumn<QStringList>("shown");
        QTest::newRow("words") << QByteArrayList{"The", " sea"} << QStringList{"The", " sea"};
        QTest::newRow("one character of two tokens") << QByteArrayList{" caf\xc3", "\xa9", "s"} << QStringList{" café", "s"};
        QTest::newRow("one character of three tokens") << QByteArrayList{"\xf0\x9f", "\x8c", "\x8a"} << QStringList{"🌊"};
        QTest::newRow("a character cut off at the end") << QByteArrayList{"a", " \xe2\x9c"} << QStringList{"a", " ⟨E2⟩⟨9C⟩"};
        QTest::newRow("a stray byte") << QByteArrayList{"\xff", "x"} << QStringList{"⟨FF⟩", "x"};
        QTest::newRow("a lead byte without its rest") << QByteArrayList{"\xe2", "abc"} << QStringList{"⟨E2⟩", "abc"};
        QTest::newRow("an overlong form") << QByteArrayList{"\xc0\xaf"} << QStringList{"⟨C0⟩⟨AF⟩"};
        QTest::newRow("line ends and blanks") << QByteArrayList{".\n", "  ", "\t"} << QStringList{".⏎", "␣␣", "⇥"};
        QTest::newRow("control characters") << QByteArrayList{std::string("\0", 1).c_str(), "\x01"} << QStringList{"", "⟨01⟩"};
    }
    void bytesBecomeText() {
        QFETCH(QByteArrayList, pieces);
        QFETCH(QStringList, shown);
        std::vector<std::string> bytes;
        for (const QByteArray& piece : pieces)
            bytes.push_back(piece.toStdString());
        TokensModel model;
        const auto trace = withTokens(bytes);
        model.setText(trace.get(), LaneIndex{0}, true);
        QCOMPARE(texts(model), shown);
        int tokens = 0;
        for (const TokenCluster& cluster : model.clusters()) {
            QCOMPARE(cluster.first, tokens);
            tokens += cluster.count;
        }
        QCOMPARE(tokens, static_cast<int>(pieces.size()));
    }

    void growingTextGivesWhatSettingItAtOnceGives() {
        const std::vector<std::string> pieces{"The", " caf", "\xc3", "\xa9", " of", " \xf0\x9f", "\x8c", "\x8a", "\n", "end"};
        const auto trace = withTokens(pieces);
        TokensModel whole, grown;
        whole.setText(trace.get(), LaneIndex{0}, true);
        for (std::size_t n = 1; n <= pieces.size(); ++n) {
            auto part = std::make_shared<Trace>(*trace);
            part->tokens.resize(n);
            grown.setText(part.get(), LaneIndex{0}, true);
            QCOMPARE(grown.positions(), static_cast<Position>(n));
        }
        QCOMPARE(texts(grown), texts(whole));
        for (Position p = 0; p < grown.positions(); ++p)
            QCOMPARE(grown.clusterOf(p), whole.clusterOf(p));
    }

    void symbolsAreAnOption() {
        const auto trace = withTokens({"a\n", "   "});
        TokensModel model;
        model.setText(trace.get(), LaneIndex{0}, false);
        QCOMPARE(texts(model), (QStringList{"a", "   "}));
        QCOMPARE(model.clusters()[0].lineBreaks, 1);
    }

    void holdingIsCountedAtTheStep() {
        const auto trace = test::buildTrace({.mapBins = 0});
        const Retention& retention = trace->lanes[1].retention;
        TokensModel model;
        model.setText(trace.get(), LaneIndex{1}, true);
        Focus focus;
        focus.lane = LaneIndex{1};
        for (const int step : {0, 1, 2, 10, 21}) {
            focus.step = Step{step};
            focus.layer = LayerIndex{2};
            focus.head = HeadIndex{1};
            for (const HoldingScope scope : {HoldingScope::everything, HoldingScope::layer, HoldingScope::head}) {
                model.setHolding(trace.get(), focus, scope);
                for (Position p = 0; p < model.positions(); ++p) {
                    if (p >= retention.positionsAt(focus.step)) {
                        QCOMPARE(model.state(p), TokenState::ahead);
                        continue;
                    }
                    int held = 0, all = 0;
                    for (int l = 0; l < 4; ++l)
                        for (int h = 0; h < 3; ++h) {
                            if (scope != HoldingScope::everything && l != 2) continue;
                            if (scope == HoldingScope::head && h != 1) continue;
                            ++all;
                            held += retention.holds(focus.step, LayerIndex{l}, HeadIndex{h}, p);
                        }
                    QCOMPARE(model.share(p), static_cast<double>(held) / all);
                    QCOMPARE(model.state(p), held > 0 ? TokenState::held : TokenState::evicted);
                }
            }
        }
    }

    void tooltipSaysWhoHoldsTheToken() {
        QLocale::setDefault(QLocale::c());
        const auto trace = test::buildTrace({.mapBins = 0});
        TokensModel model;
        model.setText(trace.get(), LaneIndex{0}, true);
        Focus focus;
        focus.step = Step{1};
        model.setHolding(trace.get(), focus, HoldingScope::everything);
        const QString text = model.toolTip(*trace, focus, 4);
        QVERIFY2(text.contains("Position 4"), qPrintable(text));
        QVERIFY(text.contains("id 7"));
        QVERIFY(text.contains("12 of 12"));
        QVERIFY(text.contains("3 3 3 3"));
        QVERIFY(model.toolTip(*trace, focus, 70).contains("Not in the cache"));
    }

    void wordsMoveToTheNextLineWhole() {
        const auto trace = withTokens({"one", " two", " thr", "ee", " four\n", "five"});
        TokensModel model;
        model.setText(trace.get(), LaneIndex{0}, true);
        TokensLayout layout;
        layout.update(model.clusters(), 0, 100, 20, tenPerLetter);
        QCOMPARE(layout.box(0).line, 0);
        QCOMPARE(layout.box(1).line, 0);
        QCOMPARE(layout.box(2).line, 1); // "three" is one word
        QCOMPARE(layout.box(3).line, 1);
        QVERIFY(layout.box(2).trimmed);
        QCOMPARE(layout.box(2).width, 30.0f); // without its space
        QCOMPARE(layout.box(3).x, 30.0f);
        QCOMPARE(layout.box(4).line, 2); // " four⏎" does not fit behind "three"
        QCOMPARE(layout.box(5).line, 3);
    }

    void incrementalLayoutEqualsAFreshOne() {
        std::vector<std::string> pieces;
        for (int i = 0; i < 400; ++i)
            pieces.push_back(i % 17 == 16 ? "\n\n" : (i % 3 ? " w" : "x") + std::string(static_cast<std::size_t>(i * 7 % 9), 'o'));
        const auto trace = withTokens(pieces);
        TokensModel model;
        TokensLayout grown;
        for (std::size_t n = 5; n <= pieces.size(); n += 5) {
            auto part = std::make_shared<Trace>(*trace);
            part->tokens.resize(n);
            const std::size_t kept = model.setText(part.get(), LaneIndex{0}, true);
            grown.update(model.clusters(), kept, 300, 20, tenPerLetter);
        }
        TokensLayout fresh;
        fresh.update(model.clusters(), 0, 300, 20, tenPerLetter);
        for (std::size_t c = 0; c < model.clusters().size(); ++c)
            QCOMPARE(grown.rect(c), fresh.rect(c));
    }

    void everyTokenIsFoundWhereItIsDrawn() {
        const auto trace = test::buildTrace({.prompt = 200, .mapBins = 0});
        TokensModel model;
        model.setText(trace.get(), LaneIndex{0}, true);
        TokensLayout layout;
        layout.update(model.clusters(), 0, 333, 18, tenPerLetter);
        for (Position p = 0; p < model.positions(); ++p) {
            const std::size_t c = model.clusterOf(p);
            const QRectF rect = layout.tokenRect(model.clusters()[c], c, p - model.clusters()[c].first);
            QVERIFY(rect.width() > 0);
            QVERIFY(rect.right() <= 333.01);
            QCOMPARE(layout.positionAt(model.clusters(), rect.center().x(), rect.center().y()), p);
        }
        QCOMPARE(layout.positionAt(model.clusters(), 5, -3), -1);
        QCOMPARE(layout.positionAt(model.clusters(), 5, layout.height() + 3), -1);
    }

    void textIsReadableOnEveryBackground_data() {
        QTest::addColumn<QColor>("base");
        QTest::addColumn<QColor>("ink");
        QTest::newRow("light") << QColor(Qt::white) << QColor(Qt::black);
        QTest::newRow("dark") << QColor(30, 32, 36) << QColor(225, 227, 230);
    }
    void textIsReadableOnEveryBackground() {
        QFETCH(QColor, base);
        QFETCH(QColor, ink);
        TokensStyle style;
        style.base = base;
        style.ink = ink;
        const auto luminance = [](const QColor& c) {
            const auto linear = [](double v) { return v <= 0.04045 ? v / 12.92 : std::pow((v + 0.055) / 1.055, 2.4); };
            return 0.2126 * linear(c.redF()) + 0.7152 * linear(c.greenF()) + 0.0722 * linear(c.blueF());
        };
        const auto contrast = [&](const QColor& a, const QColor& b) {
            const double x = luminance(a), y = luminance(b);
            return (std::max(x, y) + 0.05) / (std::min(x, y) + 0.05);
        };
        for (int i = 0; i <= 20; ++i)
            QVERIFY(contrast(style.background(TokenState::held, i / 20.0), style.text(TokenState::held, i / 20.0)) >= 4.0);
        QVERIFY(contrast(style.background(TokenState::evicted, 0), style.text(TokenState::evicted, 0)) >= 4.0);
        QVERIFY(contrast(base, style.text(TokenState::ahead, 0)) >= 3.0);
        QVERIFY(!style.background(TokenState::ahead, 0).isValid());
    }

    void clickAndKeysMoveTheFocus() {
        const auto trace = test::buildTrace({.mapBins = 0});
        TokensView view;
        FocusModel focus;
        view.follow(focus);
        view.setTrace(trace);
        view.resize(500, 300);
        view.show();
        QVERIFY(QTest::qWaitForWindowExposed(&view));
        auto* area = view.findChild<TokensArea*>();
        const TokensLayout& layout = area->layoutOfText();
        const std::size_t c = area->model().clusterOf(9);
        QTest::mouseClick(area->viewport(), Qt::LeftButton, {}, layout.rect(c).center().toPoint() + QPoint(8, 8));
        QCOMPARE(focus.focus().position, 9);
        QTest::keyClick(area, Qt::Key_Right);
        QCOMPARE(focus.focus().position, 10);
        QTest::keyClick(area, Qt::Key_Home);
        QTest::keyClick(area, Qt::Key_Left);
        QCOMPARE(focus.focus().position, 0);
        QTest::keyClick(area, Qt::Key_Down);
        QCOMPARE(layout.box(area->model().clusterOf(focus.focus().position)).line, 1);
        QTest::keyClick(area, Qt::Key_Up);
        QCOMPARE(focus.focus().position, 0);
        QTest::keyClick(area, Qt::Key_End);
        QCOMPARE(focus.focus().position, 79);
    }

    void noTraceAndNoStepsAreHarmless() {
        TokensView view;
        FocusModel focus;
        focus.setPosition(1000000);
        focus.setLane(LaneIndex{9});
        view.follow(focus);
        view.resize(300, 200);
        QVERIFY(!view.grab().isNull());
        QVERIFY(!view.figure());
        view.setTrace(withTokens({"only", " text"}));
        QVERIFY(!view.grab().isNull());
        view.setTrace(nullptr);
        QVERIFY(!view.grab().isNull());
    }

    void theFigureHoldsTheNumbersOfThePicture() {
        const auto trace = test::buildTrace({.mapBins = 0});
        const auto figure = tokensFigure(trace, {LaneIndex{1}, Step{10}});
        const PictureData expected = picture(*trace, "tokens", {LaneIndex{1}, Step{10}});
        QCOMPARE(figure->data().shape, expected.shape);
        QCOMPARE(toJson(figure->data()), toJson(expected));
        const QSizeF narrow = figure->sizeForWidth(234), wide = figure->sizeForWidth(486);
        QVERIFY(narrow.height() > wide.height());
        QImage image(narrow.toSize() * 2, QImage::Format_RGB32);
        image.fill(Qt::white);
        QPainter painter(&image);
        painter.scale(2, 2);
        figure->paint(painter, narrow);
        painter.end();
        int colored = 0;
        for (int y = 0; y < image.height(); ++y)
            for (int x = 0; x < image.width(); ++x)
                colored += image.pixelColor(x, y).hsvSaturation() > 100;
        QVERIFY2(colored > image.width() * image.height() / 10, qPrintable(QString::number(colored)));
    }
};

QTEST_MAIN(TokensTest)
#include "tokens_test.moc"
