#include "engine/data/error.h"
#include "engine/data/picture.h"
#include "tests/support/trace_builder.h"
#include "widgets/results/results_model.h"
#include "widgets/results/results_view.h"

#include <QAbstractItemModelTester>
#include <QClipboard>
#include <QFile>
#include <QGuiApplication>
#include <QHeaderView>
#include <QSignalSpy>
#include <QTabBar>
#include <QTableView>
#include <QTemporaryDir>
#include <QtTest>

using namespace keepsight;

namespace {

int columnOf(const QAbstractItemModel* model, const QString& field) {
    for (int column = 0; column < model->columnCount(); ++column)
        if (model->headerData(column, Qt::Horizontal, ResultsModel::ExactRole).toString() == field) return column;
    return -1;
}

QStringList valuesOf(const QAbstractItemModel* model, const QString& field) {
    QStringList out;
    for (int row = 0; row < model->rowCount(); ++row)
        out << model->index(row, columnOf(model, field)).data(ResultsModel::ExactRole).toString();
    return out;
}

} // namespace

class ResultsTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void initTestCase() { QLocale::setDefault(QLocale::c()); }

    void kindsAreTablesOfTheirOwn() {
        const auto trace = test::buildTrace({.mapBins = 0});
        QCOMPARE(ResultsModel::kinds(*trace), (std::vector<std::string>{"needle", "ppl"}));
        ResultsModel model;
        QAbstractItemModelTester tester(&model, QAbstractItemModelTester::FailureReportingMode::QtTest);
        model.set(trace, "needle");
        QCOMPARE(model.rowCount(), 17);
        QCOMPARE(model.columnCount(), 12); // the lane and eleven fields
        QCOMPARE(columnOf(&model, "policy"), 1);
        QCOMPARE(columnOf(&model, "kept_needle_share"), 11);
        model.set(trace, "ppl");
        QCOMPARE(model.rowCount(), 2);
        model.set(nullptr, "");
        QCOMPARE(model.rowCount(), 0);
        QCOMPARE(model.columnCount(), 0);
    }

    void aSuiteShowsWhatItComparesByFirst() {
        auto trace = std::make_shared<Trace>(*test::buildTrace({.mapBins = 0}));
        trace->measurements.clear();
        for (const char* kind : {"suite_window", "explain", "suite"}) {
            Measurement row;
            row.kind = kind;
            row.lane = LaneIndex{1};
            for (const char* field : {"policy", "quant", "nll", "ppl", "ppl_delta", "n_tokens", "kv_bytes", "kv_bytes_allocated", "bits_per_value", "tpot_ms"})
                row.set(field, 1.0);
            trace->measurements.push_back(row);
        }
        QCOMPARE(ResultsModel::kinds(*trace), std::vector<std::string>{"suite"});
        ResultsModel model;
        model.set(trace, "suite");
        QStringList fields;
        for (int column = 1; column < model.columnCount(); ++column)
            fields << model.headerData(column, Qt::Horizontal, ResultsModel::ExactRole).toString();
        QCOMPARE(fields, (QStringList{"policy", "quant", "ppl", "ppl_delta", "kv_bytes", "bits_per_value", "tpot_ms", "nll", "n_tokens", "kv_bytes_allocated"}));
        QCOMPARE(model.headerData(10, Qt::Horizontal).toString(), QString("kv_allocated [MB]"));
    }

    void newRowsAreInserted() {
        const auto trace = test::buildTrace({.mapBins = 0});
        auto fewer = std::make_shared<Trace>(*trace);
        fewer->measurements.resize(5);
        ResultsModel model;
        QAbstractItemModelTester tester(&model, QAbstractItemModelTester::FailureReportingMode::QtTest);
        model.set(fewer, "needle");
        QSignalSpy inserted(&model, &QAbstractItemModel::rowsInserted), reset(&model, &QAbstractItemModel::modelReset);
        fewer = std::make_shared<Trace>(*trace);
        fewer->measurements.resize(8);
        model.set(fewer, "needle");
        QCOMPARE(inserted.count(), 1);
        QCOMPARE(reset.count(), 0);
        model.set(fewer, "needle");
        QCOMPARE(inserted.count(), 1);
    }

    void valuesAreShownWithUnits_data() {
        QTest::addColumn<QString>("field");
        QTest::addColumn<double>("value");
        QTest::addColumn<QString>("shown");
        QTest::newRow("bytes in MB") << "kv_bytes" << 3640000.0 << "3.640";
        QTest::newRow("milliseconds") << "tpot_ms" << 8.25 << "8.250";
        QTest::newRow("whole") << "depth" << 50.0 << "50";
        QTest::newRow("share") << "compression_ratio" << 0.5 << "0.5";
        QTest::newRow("small") << "kl" << 0.00002 << "2.000e-05";
        QTest::newRow("not a number") << "ppl" << NotMeasured << "";
    }
    void valuesAreShownWithUnits() {
        QFETCH(QString, field);
        QFETCH(double, value);
        QFETCH(QString, shown);
        QCOMPARE(shownValue(field.toStdString(), value), shown);
    }

    void headersSplitTheUnitOff() {
        QCOMPARE(fieldTitle("tpot_ms").name, QString("tpot"));
        QCOMPARE(fieldTitle("tpot_ms").unit, QString("ms"));
        QCOMPARE(fieldTitle("prefill_s").unit, QString("s"));
        QCOMPARE(fieldTitle("kv_bytes").name, QString("kv"));
        QCOMPARE(fieldTitle("kv_bytes").unit, QString("MB"));
        QCOMPARE(fieldTitle("policy").unit, QString());
    }

    void sortingIsByValueAndMissingStaysLast() {
        auto trace = std::make_shared<Trace>();
        for (const double value : {10.0, 9.0, NotMeasured, 100.0}) {
            Measurement row;
            row.kind = "ppl";
            row.set("ppl", value);
            trace->measurements.push_back(row);
        }
        ResultsView view;
        view.setTrace(trace);
        auto* table = view.findChild<QTableView*>("table");
        table->sortByColumn(1, Qt::AscendingOrder);
        QCOMPARE(valuesOf(table->model(), "ppl"), (QStringList{"9", "10", "100", ""}));
        table->sortByColumn(1, Qt::DescendingOrder);
        QCOMPARE(valuesOf(table->model(), "ppl"), (QStringList{"100", "10", "9", ""}));
    }

    void onlyDifferencesHidesEqualColumns() {
        ResultsView view;
        view.setTrace(test::buildTrace({.mapBins = 0}));
        auto* table = view.findChild<QTableView*>("table");
        const int constant = columnOf(table->model(), "key_index"), varying = columnOf(table->model(), "depth");
        QVERIFY(!table->isColumnHidden(constant));
        view.setDifferencesOnly(true);
        QVERIFY(table->isColumnHidden(constant));
        QVERIFY(!table->isColumnHidden(varying));
        view.setDifferencesOnly(false);
        QVERIFY(!table->isColumnHidden(constant));
    }

    void theSelectionIsCopiedAsTsv() {
        ResultsView view;
        view.setTrace(test::buildTrace({.mapBins = 0}));
        view.findChild<QTabBar*>("kinds")->setCurrentIndex(1);
        auto* table = view.findChild<QTableView*>("table");
        const int ppl = columnOf(table->model(), "ppl"), policy = columnOf(table->model(), "policy");
        for (int row = 0; row < 2; ++row)
            for (const int column : {ppl, policy})
                table->selectionModel()->select(table->model()->index(row, column), QItemSelectionModel::Select);
        const QString expected = "policy\tppl\nfull\t17.5\nsnapkv\t19.25";
        QCOMPARE(view.selectionAsTsv(), expected);
        view.show();
        QVERIFY(QTest::qWaitForWindowActive(&view));
        table->setFocus();
        QTest::keyClick(table, Qt::Key_C, Qt::ControlModifier);
        QCOMPARE(QGuiApplication::clipboard()->text(), expected);
        table->clearSelection();
        QCOMPARE(view.selectionAsTsv().count('\n'), 2); // all of it
    }

    void tabsAndLineBreaksInsideACellDoNotShiftTheRest() {
        auto trace = std::make_shared<Trace>();
        Measurement row;
        row.kind = "needle";
        row.set("answer", std::string("a\tb\nc"));
        row.set("score", 1.0);
        trace->measurements = {row, row};
        ResultsView view;
        view.setTrace(trace);
        QCOMPARE(view.selectionAsTsv(), QString("lane\tanswer\tscore\n\ta b c\t1\n\ta b c\t1"));
    }

    void csvHoldsTheRowsOfTheTab() {
        const auto trace = test::buildTrace({.mapBins = 0});
        ResultsView view;
        view.setTrace(trace);
        view.findChild<QTabBar*>("kinds")->setCurrentIndex(1);
        QTemporaryDir dir;
        view.exportCsv(dir.filePath("ppl.csv"));
        QFile file(dir.filePath("ppl.csv"));
        QVERIFY(file.open(QIODevice::ReadOnly));
        std::vector<Measurement> rows;
        for (const Measurement& row : trace->measurements)
            if (row.kind == "ppl") rows.push_back(row);
        QCOMPARE(file.readAll().toStdString(), measurementsToCsv(rows));
        QVERIFY_THROWS_EXCEPTION(EngineError, view.exportCsv(dir.filePath("nowhere/ppl.csv")));
    }

    void tabsFollowTheTrace() {
        const auto trace = test::buildTrace({.mapBins = 0});
        ResultsView view;
        view.setTrace(trace);
        auto* kinds = view.findChild<QTabBar*>("kinds");
        QCOMPARE(kinds->count(), 2);
        QCOMPARE(kinds->tabText(0), QString("needle (17)"));
        kinds->setCurrentIndex(1);
        view.setTrace(std::make_shared<Trace>(*trace));
        QCOMPARE(kinds->currentIndex(), 1); // the tab stays
        view.setTrace(nullptr);
        QCOMPARE(kinds->count(), 0);
    }
};

QTEST_MAIN(ResultsTest)
#include "results_test.moc"
