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

using namespace keepsight;

namespace {

std::vector<PolicyInfo> registry() {
    PolicyInfo full{"full", {"none"}, PolicyKind::evict, "Keeps every token.", "", {}, false};
    PolicyInfo snapkv{"snapkv", {}, PolicyKind::evict, "Keeps what the last window attends to.", "SnapKV, arXiv:2404.14469",
                      {{"window", ParamInfo::Type::integer, "64", 1, 4096, {}, "tokens", "Queries that vote."}}, true};
    return {full, snapkv};
}

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
