#include "tests/support/trace_builder.h"
#include "widgets/base/focus_model.h"
#include "widgets/lanes/lane_color.h"
#include "widgets/lanes/lane_panel.h"

#include <QComboBox>
#include <QDoubleSpinBox>
#include <QLabel>
#include <QPushButton>
#include <QSignalSpy>
#include <QSlider>
#include <QToolButton>
#include <QtTest>
#include <set>
#include <tuple>

using namespace keepsight;

namespace {

std::vector<PolicyInfo> registry() {
    PolicyInfo full{"full", {"none"}, PolicyKind::evict, "Keeps every token.", "", {}, false};
    PolicyInfo snapkv{"snapkv", {}, PolicyKind::evict, "Keeps what the last window attends to.", "SnapKV, arXiv:2404.14469",
                      {{"window", ParamInfo::Type::integer, "64", 1, 4096, {}, "tokens", "Queries that vote."}}, true};
    PolicyInfo made{"made", {}, PolicyKind::evict, "Made for packing.", "", {}, true, "pack:bits=4"};
    return {full, snapkv, made};
}

std::vector<QuantInfo> quantizers() {
    return {{"none", {}, "Stores every value as it is.", "", {}},
            {"pack", {}, "Packs.", "", {{"bits", ParamInfo::Type::choice, "2", 0, 0, {"2", "4"}, "", "Bits."}, {"group", ParamInfo::Type::integer, "32", 4, 1024, {}, "values", "Group."}}},
            {"other", {}, "Packs otherwise.", "", {}}};
}

// "made" goes with "pack" only, and "other" with nothing that has a budget.
QString conflict(const PolicySpec& spec) {
    if (spec.id == "made" && spec.quant.id != "pack") return "made needs pack.";
    return spec.quant.id == "other" && spec.id != "full" ? QString("other packs no budget.") : QString();
}

LanePanel* withQuantizers(LanePanel* panel) {
    panel->setQuantizers(quantizers(), conflict);
    return panel;
}

bool enabled(QComboBox* box, const char* text) { return box->model()->index(box->findText(text), 0).flags() & Qt::ItemIsEnabled; }
QString tip(QComboBox* box, const char* text) { return box->model()->index(box->findText(text), 0).data(Qt::ToolTipRole).toString(); }

} // namespace

class LaneTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void initTestCase() { QLocale::setDefault(QLocale::c()); }

    void lanesDifferByColourDashAndMarker() {
        std::set<QRgb> colors;
        std::set<int> markers;
        QList<QList<qreal>> dashes;
        for (int i = 0; i < MaxLanes; ++i) {
            colors.insert(laneColor(LaneIndex{i}).rgb());
            markers.insert(static_cast<int>(laneMarker(LaneIndex{i})));
            QVERIFY(!dashes.contains(laneDash(LaneIndex{i})));
            dashes << laneDash(LaneIndex{i});
        }
        QCOMPARE(colors.size(), std::size_t{4});
        QCOMPARE(markers.size(), std::size_t{4});
        std::set<std::tuple<int, bool, QList<qreal>>> looks; // of a session's lanes, hue aside
        for (int i = 0; i < 16; ++i) looks.insert({static_cast<int>(laneMarker(LaneIndex{i})), laneMarkerHollow(LaneIndex{i}), laneDash(LaneIndex{i})});
        QCOMPARE(looks.size(), std::size_t{16});
        for (int i = 0; i < 12; ++i) QVERIFY(laneColor(LaneIndex{i}) != laneColor(LaneIndex{i + MaxLanes})); // the same shape again
        QCOMPARE(laneTextColor(Qt::black), QColor(Qt::white));
        QCOMPARE(laneTextColor(Qt::yellow), QColor(Qt::black));
    }

    void thePanelStartsWithTheFullCacheAndHalfOfIt() {
        LanePanel panel(registry());
        const std::vector<LaneSpec> lanes = panel.lanes();
        QCOMPARE(lanes.size(), std::size_t{2});
        QCOMPARE(lanes[0], (LaneSpec{"A", PolicySpec{}}));
        QCOMPARE(lanes[1].label, std::string("B"));
        QCOMPARE(lanes[1].policy.id, std::string("snapkv"));
        QCOMPARE(lanes[1].policy.budget, Budget::removed(0.5));
    }

    void atMostFourLanesAndAtLeastOne() {
        LanePanel panel(registry());
        QSignalSpy changed(&panel, &LanePanel::lanesChanged);
        for (int i = 0; i < 5; ++i)
            panel.addLane();
        QCOMPARE(panel.lanes().size(), std::size_t{4});
        QCOMPARE(changed.count(), 2);
        QVERIFY(!panel.findChild<QPushButton*>("addLane")->isEnabled());
        for (int i = 0; i < 5; ++i)
            panel.removeLane(LaneIndex{0});
        QCOMPARE(panel.lanes().size(), std::size_t{1});
        QCOMPARE(panel.lanes()[0].label, std::string("A"));
        QCOMPARE(changed.count(), 5);
    }

    void removingALaneMovesTheOthersUpAndTheFocusIntoRange() {
        LanePanel panel(registry());
        FocusModel focus;
        panel.follow(focus);
        panel.addLane();
        focus.setLane(LaneIndex{2});
        panel.removeLane(LaneIndex{0});
        QCOMPARE(panel.lanes()[0].policy.id, std::string("snapkv"));
        QCOMPARE(focus.focus().lane, LaneIndex{1});
    }

    void draggingPreviewsAndReleasingDecides() {
        LanePanel panel(registry());
        QSignalSpy dragged(&panel, &LanePanel::budgetDragged), decided(&panel, &LanePanel::specChanged);
        auto* slider = panel.editor(LaneIndex{1})->findChild<QSlider*>("budget");
        slider->setSliderDown(true);
        slider->setValue(600);
        slider->setValue(735);
        QCOMPARE(dragged.count(), 2);
        QCOMPARE(decided.count(), 0);
        QCOMPARE(dragged.last().at(0).value<LaneIndex>(), LaneIndex{1});
        QCOMPARE(dragged.last().at(1).value<PolicySpec>().budget, Budget::removed(0.735));
        QCOMPARE(panel.editor(LaneIndex{1})->findChild<QDoubleSpinBox*>("amount")->value(), 73.5);
        slider->setSliderDown(false);
        QCOMPARE(decided.count(), 1);
        QCOMPARE(decided.last().at(1).value<PolicySpec>().budget, Budget::removed(0.735));
    }

    void sharesAndTokensAreTwoWaysToSayABudget() {
        LanePanel panel(registry());
        panel.setPromptTokens(158);
        LaneEditor* lane = panel.editor(LaneIndex{1});
        auto* unit = lane->findChild<QComboBox*>("unit");
        unit->setCurrentIndex(1);
        QCOMPARE(lane->spec().budget, Budget::kept(79));
        unit->setCurrentIndex(0);
        QCOMPARE(lane->spec().budget, Budget::removed(0.5));
        lane->findChild<QDoubleSpinBox*>("amount")->setValue(90);
        QCOMPARE(lane->spec().budget, Budget::removed(0.9));
    }

    void aPolicyWithoutBudgetShowsNone() {
        LanePanel panel(registry());
        panel.show();
        QVERIFY(!panel.editor(LaneIndex{0})->findChild<QSlider*>("budget")->isVisible());
        QVERIFY(panel.editor(LaneIndex{1})->findChild<QSlider*>("budget")->isVisible());
    }

    void theFormOpensBelowTheButton() {
        LanePanel panel(registry());
        panel.show();
        LaneEditor* lane = panel.editor(LaneIndex{1});
        auto* form = lane->findChild<PolicyForm*>();
        QVERIFY(!form->isVisible());
        lane->findChild<QToolButton*>("policyButton")->click();
        QVERIFY(form->isVisible());
        QSignalSpy decided(&panel, &LanePanel::specChanged);
        form->findChild<QSpinBox*>("window")->setValue(16);
        QCOMPARE(decided.last().at(1).value<PolicySpec>().text(), std::string("snapkv:window=16"));
        QCOMPARE(decided.last().at(1).value<PolicySpec>().budget, Budget::removed(0.5));
    }

    void aLaneIsStoredAsItsQuantizerSays() {
        LanePanel panel(registry());
        withQuantizers(&panel)->show();
        LaneEditor* lane = panel.editor(LaneIndex{1});
        auto* box = lane->findChild<QComboBox*>("quantizer");
        QVERIFY(box && box->isVisible() && !box->accessibleName().isEmpty());
        QSignalSpy decided(&panel, &LanePanel::specChanged);
        box->setCurrentText("pack");
        QCOMPARE(decided.count(), 1);
        QCOMPARE(decided.last().at(1).value<PolicySpec>().quant, (QuantSpec{"pack", {}}));
        QCOMPARE(panel.lanes()[1].policy.quant.id, std::string("pack"));
        auto* summary = lane->findChild<QLabel*>("summary", Qt::FindDirectChildrenOnly);
        QVERIFY2(QString(summary->text()).replace(QChar(QChar::Nbsp), ' ').contains("pack bits 2"), qPrintable(summary->text()));

        auto* form = lane->findChild<QuantForm*>("quantForm");
        QVERIFY(!form->isVisible());
        lane->findChild<QToolButton*>("quantButton")->click();
        QVERIFY(form->isVisible());
        form->findChild<QComboBox*>("bits")->setCurrentText("4");
        QCOMPARE(decided.last().at(1).value<PolicySpec>().quant.text(), std::string("pack:bits=4"));
        lane->findChild<QDoubleSpinBox*>("amount")->setValue(70); // a change of budget leaves it
        QCOMPARE(lane->spec().quant.text(), std::string("pack:bits=4"));
        box->setCurrentText("none");
        QVERIFY(!form->isVisible());
        QCOMPARE(lane->spec().quant, QuantSpec());
        QVERIFY(!LanePanel(registry()).editor(LaneIndex{0})->findChild<QComboBox*>("quantizer"));
    }

    void whatDoesNotGoTogetherIsGreyWithItsReason() {
        LanePanel panel(registry());
        withQuantizers(&panel);
        LaneEditor* lane = panel.editor(LaneIndex{1}); // snapkv
        auto* quantizer = lane->findChild<QComboBox*>("quantizer");
        auto* policy = lane->findChild<QComboBox*>("policy");
        QVERIFY(!enabled(quantizer, "other"));
        QCOMPARE(tip(quantizer, "other"), QString("Other packs no budget."));
        QVERIFY(enabled(quantizer, "pack"));
        QVERIFY(enabled(policy, "made")); // brings its own quantizer
        quantizer->setCurrentText("other"); // as a keyboard could: refused, nothing else changes
        QCOMPARE(lane->spec().quant, QuantSpec());
        QCOMPARE(quantizer->currentText(), QString("none"));

        LaneEditor* full = panel.editor(LaneIndex{0});
        full->findChild<QComboBox*>("quantizer")->setCurrentText("other");
        QCOMPARE(full->spec().quant.id, std::string("other"));
        QVERIFY(!enabled(full->findChild<QComboBox*>("policy"), "made"));
        QCOMPARE(tip(full->findChild<QComboBox*>("policy"), "made"), QString("Made needs pack."));
    }

    void aPolicyBringsTheQuantizerItIsMadeFor() {
        LanePanel panel(registry());
        withQuantizers(&panel);
        LaneEditor* lane = panel.editor(LaneIndex{1});
        auto* policy = lane->findChild<QComboBox*>("policy");
        policy->setCurrentText("made");
        QCOMPARE(lane->spec().quant.text(), std::string("pack:bits=4"));
        QCOMPARE(lane->findChild<QComboBox*>("quantizer")->currentText(), QString("pack"));
        QVERIFY(!enabled(lane->findChild<QComboBox*>("quantizer"), "none"));
        policy->setCurrentText("snapkv"); // a choice once shown is not taken back silently
        QCOMPARE(lane->spec().quant.text(), std::string("pack:bits=4"));
    }

    void aLaneThatCannotRunSaysWhy() {
        LanePanel panel(registry());
        withQuantizers(&panel)->show();
        LaneEditor* lane = panel.editor(LaneIndex{1});
        PolicySpec spec = lane->spec();
        spec.quant.id = "other"; // from a session or a command line
        lane->setSpec(spec);
        QCOMPARE(lane->spec().quant.id, std::string("other"));
        QVERIFY(lane->findChild<QLabel*>("notice")->text().contains("Other packs no budget."));
    }

    void quantizersAreComparedWithTheirDefaults() {
        LanePanel panel(registry());
        withQuantizers(&panel);
        LaneEditor* lane = panel.editor(LaneIndex{1});
        PolicySpec spec = lane->spec();
        spec.quant = {"pack", {{"bits", "2"}}};
        QVERIFY(!lane->means(spec));
        lane->findChild<QComboBox*>("quantizer")->setCurrentText("pack");
        QVERIFY(lane->means(spec));
        spec.quant.params["bits"] = "4";
        QVERIFY(!lane->means(spec));
        panel.addLane(); // a copy, quantizer included
        QCOMPARE(panel.lanes()[2].policy, panel.lanes()[1].policy);
    }

    void packedBytesAreToldPerValue() {
        auto trace = std::make_shared<Trace>(*test::buildTrace({.mapBins = 0}));
        QVERIFY(std::isnan(laneResults(*trace, LaneIndex{1}).bitsPerValue));
        trace->lanes[1].policy.quant.id = "pack";
        const auto& c = trace->model.config;
        trace->lanes[1].steps.back().kvBytes = std::int64_t{2} * 30 * c.layers * c.kvHeads * c.headDim / 2; // 4 bits
        const LaneResults b = laneResults(*trace, LaneIndex{1});
        QCOMPARE(b.bitsPerValue, 4.0);
        LanePanel panel(registry());
        withQuantizers(&panel)->setLanes({{"A", trace->lanes[0].policy}, {"B", trace->lanes[1].policy}});
        panel.setResults(trace);
        const QString kept = panel.editor(LaneIndex{1})->findChild<QLabel*>("kept")->text();
        QVERIFY2(kept.contains("30 tokens per head") && kept.contains("MB") && kept.contains("4.00 bits/value"), qPrintable(kept));
    }

    void resultsComeFromTheTrace() {
        const auto trace = test::buildTrace({.mapBins = 0});
        const LaneResults a = laneResults(*trace, LaneIndex{0}), b = laneResults(*trace, LaneIndex{1});
        QVERIFY(a.measured && b.measured);
        QCOMPARE(a.keptPerHead, 80.0);
        QCOMPARE(b.keptPerHead, 30.0);
        QCOMPARE(b.perplexity, trace->perplexityAt(LaneIndex{1}, Step{21}));
        QCOMPARE(b.perplexityDelta, b.perplexity - a.perplexity);
        QVERIFY(std::isnan(a.perplexityDelta));
        QVERIFY(a.msPerToken > 5.0 && a.msPerToken < 6.0);
        QVERIFY(b.notice.contains("window shrunk"));
        QVERIFY(!laneResults(*trace, LaneIndex{7}).measured);
    }

    void theDifferenceIsTakenOverTheSameTokens() {
        auto trace = std::make_shared<Trace>(*test::buildTrace({.mapBins = 0}));
        trace->lanes[1].steps.resize(10); // lane B has not come as far as A
        const Step common{9};
        QCOMPARE(laneResults(*trace, LaneIndex{1}).perplexityDelta, trace->perplexityAt(LaneIndex{1}, common) - trace->perplexityAt(LaneIndex{0}, common));
        trace->run.kind = "generate"; // lanes say different things
        QVERIFY(std::isnan(laneResults(*trace, LaneIndex{1}).perplexityDelta));
    }

    void numbersOfAnotherBudgetAreNotShown() {
        const auto trace = test::buildTrace({.mapBins = 0});
        LanePanel panel(registry());
        panel.setLanes({{"A", trace->lanes[0].policy}, {"B", trace->lanes[1].policy}});
        panel.setResults(trace);
        auto* quality = panel.editor(LaneIndex{1})->findChild<QLabel*>("quality");
        QVERIFY(quality->text().contains("PPL"));
        panel.editor(LaneIndex{1})->findChild<QDoubleSpinBox*>("amount")->setValue(70);
        QVERIFY(quality->text().isEmpty());
    }

    void defaultsWrittenOutMeanTheSame() {
        LanePanel panel(registry());
        PolicySpec spec = panel.lanes()[1].policy;
        spec.params["window"] = "64";
        QVERIFY(panel.editor(LaneIndex{1})->means(spec));
        spec.params["window"] = "63";
        QVERIFY(!panel.editor(LaneIndex{1})->means(spec));
    }
};

QTEST_MAIN(LaneTest)
#include "lane_test.moc"
