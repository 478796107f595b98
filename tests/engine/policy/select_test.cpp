#include "engine/data/error.h"
#include "engine/policy/policy.h"
#include "engine/policy/select.h"

#include <ATen/ATen.h>
#include <QtTest>
#include <cmath>
#include <limits>
#include <tuple>

using namespace keepsight;

class SelectTest : public QObject {
    Q_OBJECT

private Q_SLOTS:
    void keepsTheHighestScoresInAscendingOrder() {
        const at::Tensor scores = at::tensor({3.f, 9.f, 1.f, 7.f, 5.f}).view({1, 5});
        QCOMPARE(select(scores, {5}, {.keep = 3}).keep[0], (std::vector<std::int32_t>{1, 3, 4}));
    }
    void breaksTiesByTheLargerPosition() {
        QCOMPARE(select(at::ones({1, 6}), {6}, {.keep = 2}).keep[0], (std::vector<std::int32_t>{4, 5}));
    }
    void treatsNanAsWorst() {
        const at::Tensor scores = at::tensor({std::nanf(""), -1e30f, std::nanf(""), 0.f}).view({1, 4});
        QCOMPARE(select(scores, {4}, {.keep = 2}).keep[0], (std::vector<std::int32_t>{1, 3}));
    }
    void protectsByMaskNotByScore() {
        const at::Tensor scores = at::tensor({0.f, 0.f, 9.f, 8.f, 7.f, 0.f}).view({1, 6});
        QCOMPARE(select(scores, {6}, {.keep = 4, .protect = {.sinks = 1, .recent = 1}}).keep[0], (std::vector<std::int32_t>{0, 2, 3, 5}));
    }
    void clampsProtectionToTheBudgetAndSaysSo() {
        std::string notice;
        const Selection s = select(at::ones({1, 10}), {10}, {.keep = 3, .protect = {.sinks = 2, .recent = 6}}, &notice);
        QCOMPARE(s.keep[0], (std::vector<std::int32_t>{0, 1, 9}));
        QVERIFY(notice.find("1 of 6 recent") != std::string::npos);
        QCOMPARE(select(at::ones({1, 10}), {10}, {.keep = 1, .protect = {.sinks = 4, .recent = 4}}).keep[0], (std::vector<std::int32_t>{0}));
    }
    void handlesRaggedHeadsAndUndefinedScores() {
        const Selection s = select({}, {3, 6}, {.keep = 4, .protect = {.sinks = 1}});
        QCOMPARE(s.keep[0], (std::vector<std::int32_t>{0, 1, 2}));
        QCOMPARE(s.keep[1], (std::vector<std::int32_t>{0, 3, 4, 5}));
    }
    // AdaKV's choice against one that sorts: the sure ones of each head, then the best of all.
    void sharesAmongHeadsAsASortWould_data() {
        QTest::addColumn<int>("longest");
        QTest::addColumn<int>("keep");
        QTest::addColumn<double>("floor");
        QTest::addColumn<int>("values"); // different ones; 0: many
        for (const int longest : {9, 300, 9000}) // the last in parallel
            for (const double part : {0.1, 0.6, 0.97, 1.5})
                for (const double floor : {0.0, 0.2, 1.0})
                    for (const int values : {0, 5}) QTest::addRow("%d, keeps %g, floor %g, %d values", longest, part, floor, values) << longest << static_cast<int>(part * longest) << floor << values;
    }
    void sharesAmongHeadsAsASortWould() {
        QFETCH(int, longest);
        QFETCH(int, keep);
        QFETCH(double, floor);
        QFETCH(int, values);
        constexpr std::int32_t Heads = 5;
        at::manual_seed(longest + values);
        at::Tensor scores = values ? at::randint(-2, values - 2, {Heads, longest}).to(at::kFloat) * (at::randint(0, 2, {Heads, longest}) * 2 - 1) : at::randn({Heads, longest}).exp(); // zeros of either sign
        scores[1][longest / 2] = NAN, scores[2][longest / 3] = INFINITY, scores[3][longest / 4] = -INFINITY;
        const std::vector<std::int32_t> held{longest, longest - 1, longest / 2, longest, longest - 3};
        const Plan plan{.keep = keep, .protect = {.sinks = 1, .recent = 2}, .adaptive = true, .adaptiveFloor = floor};
        const Selection found = select(scores, held, plan);

        const auto rows = scores.accessor<float, 2>();
        using Entry = std::tuple<float, std::int32_t, std::int32_t>; // score, index, −head: the largest first
        std::vector<std::vector<std::int32_t>> expected(Heads);
        std::vector<Entry> open;
        std::int64_t left = std::int64_t{std::max(1, keep)} * Heads;
        for (std::int32_t h = 0; h < Heads; ++h) {
            const auto i = static_cast<std::size_t>(h);
            const Protect safe = affordable(plan.protect, std::min(std::max(1, keep), held[i]));
            std::vector<Entry> mine;
            for (std::int32_t e = 0; e < held[i]; ++e) {
                const float s = rows[h][e];
                if (e < safe.sinks || e >= held[i] - safe.recent)
                    expected[i].push_back(e);
                else
                    mine.emplace_back(std::isnan(s) ? -INFINITY : s, e, -h);
            }
            std::ranges::sort(mine, std::greater<>());
            const auto sure = std::min(mine.size(), static_cast<std::size_t>(std::max(0, static_cast<int>(std::max(1, keep) * floor) - static_cast<int>(expected[i].size()))));
            for (std::size_t n = 0; n < mine.size(); ++n)
                if (n < sure)
                    expected[i].push_back(std::get<1>(mine[n]));
                else
                    open.push_back(mine[n]);
            left -= static_cast<std::int64_t>(expected[i].size());
        }
        std::ranges::sort(open, std::greater<>());
        for (std::int64_t n = 0; n < std::min(left, static_cast<std::int64_t>(open.size())); ++n)
            expected[static_cast<std::size_t>(-std::get<2>(open[static_cast<std::size_t>(n)]))].push_back(std::get<1>(open[static_cast<std::size_t>(n)]));
        for (std::size_t h = 0; h < Heads; ++h) {
            std::ranges::sort(expected[h]);
            QCOMPARE(found.keep[h], expected[h]);
        }
    }
    // What a device is asked for after a prefill, with ties, NaN, infinities and protection that gives way.
    void choosesWhereScoresLieAsOnTheHost_data() {
        QTest::addColumn<int>("held");
        QTest::addColumn<bool>("shared");
        QTest::addColumn<bool>("ties");
        for (const int held : {2, 31, 33, 4097})
            for (const bool shared : {false, true})
                for (const bool ties : {false, true}) QTest::addRow("%d entries, %s, %s", held, shared ? "heads share" : "each head", ties ? "ties" : "distinct") << held << shared << ties;
    }
    void choosesWhereScoresLieAsOnTheHost() {
        QFETCH(int, held);
        QFETCH(bool, shared);
        QFETCH(bool, ties);
        constexpr int Heads = 5;
        at::manual_seed(held);
        at::Tensor scores = ties ? at::randint(-3, 4, {Heads, held + 7}).to(at::kFloat) : at::randn({Heads, held + 7});
        if (held > 2) scores[1][7] = NAN, scores[2][5] = INFINITY, scores[3][9] = -INFINITY;
        const std::vector<std::int32_t> all(Heads, held);
        for (const double part : {0.001, 0.1, 0.5, 0.97})
            for (const Protect protect : {Protect{0, 0}, Protect{2, 3}, Protect{0, 40}, Protect{50, 1}})
                for (const double floor : {0.0, 0.2, 1.0}) {
                    const Plan plan{.keep = static_cast<int>(part * held), .protect = protect, .adaptive = shared, .adaptiveFloor = floor};
                    QVERIFY(selectsThere(all, plan));
                    QCOMPARE(selectThere(scores, all, plan).keep, select(scores, all, plan).keep);
                }
        QVERIFY(!selectsThere(all, {.keep = held}));
        QVERIFY(!selectsThere({held, held + 1}, {.keep = 1}));
        QVERIFY(!selectsThere(all, {.keep = 1, .chunk = 8}));
    }
    // The choice that a device makes by itself, with ties, NaN, infinities, ragged heads, protection.
    void choosesOnADeviceAsOnTheHost_data() {
        QTest::addColumn<bool>("shared");
        QTest::addColumn<bool>("scored");
        QTest::addColumn<int>("sinks");
        QTest::addColumn<int>("recent");
        for (const bool shared : {false, true})
            for (const bool scored : {false, true})
                for (const auto& [sinks, recent] : {std::pair(0, 0), {2, 3}, {0, 9}, {1, 40}})
                    QTest::addRow("%s, %s, %d sinks, %d recent", shared ? "heads share" : "each head", scored ? "scored" : "the oldest", sinks, recent)
                        << shared << scored << sinks << recent;
    }
    void choosesOnADeviceAsOnTheHost() {
        QFETCH(bool, shared);
        QFETCH(bool, scored);
        QFETCH(int, sinks);
        QFETCH(int, recent);
        at::manual_seed(7);
        constexpr int Heads = 5, Capacity = 40;
        for (int round = 0; round < 30; ++round) {
            std::vector<std::int32_t> held(Heads, 24 + round % 7);
            const int keep = 24 - round % 3;
            if (shared)
                for (std::int32_t& n : held) n += static_cast<std::int32_t>(at::randint(0, 8, {1}).item<std::int64_t>());
            CacheLayer entries;
            entries.held = held;
            entries.lengths = at::tensor(held, at::kInt);
            entries.positions = at::arange(Heads * Capacity, at::kInt).view({Heads, Capacity}) * 2;
            at::Tensor scores = at::randint(-3, 4, {Heads, Capacity}).to(at::kFloat);
            scores[1][7] = NAN, scores[2][5] = INFINITY, scores[3][9] = -INFINITY;
            if (!scored) scores = at::Tensor();
            const Plan plan{.keep = keep, .protect = {sinks, recent}, .adaptive = shared, .adaptiveFloor = 0.6};
            const std::optional<DeviceChoice> choice = deviceChoice(plan, held);
            if (!choice) {
                QVERIFY(!shared && held.front() <= keep);
                continue;
            }
            const Protect safe = affordable(plan.protect, keep);
            const at::Tensor gone = selectOnDevice(scores, entries, at::tensor({keep, safe.sinks, safe.recent}, at::kInt), *choice);
            const Selection expected = select(scores, held, plan);
            std::int64_t went = 0;
            for (std::int64_t h = 0; h < Heads; ++h) {
                const std::vector<std::int32_t>& keeps = expected.keep[static_cast<std::size_t>(h)];
                std::int32_t before = -1;
                std::size_t left = static_cast<std::size_t>(held[static_cast<std::size_t>(h)]);
                for (std::int64_t i = 0; i < gone.size(2); ++i) {
                    const auto position = gone[0][h][i].item<std::int32_t>(), entry = gone[1][h][i].item<std::int32_t>();
                    if (entry < 0) {
                        QVERIFY(position == -1 && entry == -1 && before == -1); // in front
                        continue;
                    }
                    QVERIFY(entry > before && !std::ranges::binary_search(keeps, entry) && entry < held[static_cast<std::size_t>(h)]);
                    QCOMPARE(position, entries.positions[h][entry].item<std::int32_t>());
                    before = entry;
                    --left;
                    ++went;
                }
                QCOMPARE(left, keeps.size());
            }
            QCOMPARE(went, choice->drops * (shared ? 1 : Heads));
        }
    }
    void leavesToTheHostWhatADeviceCannotChoose() {
        QVERIFY(deviceChoice({.keep = 8}, {9, 9})->one());
        QVERIFY(!deviceChoice({.keep = 8}, {9, 10}));
        QVERIFY(!deviceChoice({.keep = 9}, {9, 9}));
        QVERIFY(!deviceChoice({.keep = 8, .chunk = 4}, {9, 9}));
        QCOMPARE(deviceChoice({.keep = 8, .adaptive = true}, {12, 6})->drops, 2);
        QVERIFY(!deviceChoice({.keep = 8, .protect = {.sinks = 2, .recent = 6}, .adaptive = true}, {14, 4})); // protection of the second gives way
    }
    void resolvesBudgetsLikeKvpress() {
        QCOMPARE(Budget::removed(0.3).resolve(512), 358); // int(512 * (1 - 0.3))
        QCOMPARE(Budget::removed(0.9).resolve(10), 1);    // 10 · (1 − 0.9) floors to 0: clamped
        QCOMPARE(Budget::removed(0.0).resolve(7), 7);
        QCOMPARE(Budget::kept(128).resolve(4096), 128);
    }

    void refusesWrongSpecs_data() {
        QTest::addColumn<QString>("text");
        QTest::addColumn<QString>("says");
        QTest::newRow("unknown policy") << "snapvk" << "expected one of: full, window";
        QTest::newRow("unknown parameter") << "snapkv:windows=3" << "no parameter 'windows'; expected one of: window";
        QTest::newRow("out of range") << "snapkv:window=0" << "whole number from 1 to 4096, found '0'";
        QTest::newRow("not whole") << "snapkv:window=3.5" << "whole number";
        QTest::newRow("even kernel") << "snapkv:kernel=4" << "odd";
        QTest::newRow("choice") << "knorm:keep=middle" << "one of low, high";
        QTest::newRow("no value") << "knorm:keep" << "expected key=value";
        QTest::newRow("twice") << "knorm:keep=low,keep=high" << "given twice";
        QTest::newRow("dangling") << "knorm:" << "found nothing";
        QTest::newRow("full takes none") << "full:window=3" << "it takes none";
        QTest::newRow("every zero") << "tova:timing=every:0" << "one of prefill_end";
    }
    void refusesWrongSpecs() {
        QFETCH(QString, text);
        QFETCH(QString, says);
        try {
            parsePolicySpec(text.toStdString());
            QFAIL("accepted");
        } catch (const UsageError& e) {
            QVERIFY2(QString(e.what()).contains(says), e.what());
        }
    }
    void resolvesAliasesAndDropsDefaults() {
        QCOMPARE(parsePolicySpec("streaming:sinks=4").text(), std::string("streaming_llm"));
        QCOMPARE(parsePolicySpec("snapkv:window=32,pool=max").text(), std::string("snapkv:pool=max,window=32"));
        QCOMPARE(parsePolicySpec("fifo").id, std::string("window"));
    }
    void everyPolicyDescribesItself() {
        for (const PolicyEntry& entry : policyRegistry()) {
            QVERIFY2(!entry.info.summary.empty(), entry.info.id.c_str());
            for (const ParamInfo& p : entry.info.params) {
                QVERIFY2(!p.help.empty(), p.name.c_str());
                PolicySpec spec;
                spec.id = entry.info.id;
                spec.params[p.name] = p.initial;
                checkPolicySpec(spec); // the default is a legal value
            }
        }
    }
};

QTEST_APPLESS_MAIN(SelectTest)
#include "select_test.moc"
