// What steps of decoding do without the host: attention's view of what is stored, entries packed and evicted on the device, recorded steps replayed.
#include "tests/engine/cache/support.h"

#include "engine/cache/stored_parts.h"
#include "kernels/bind/packed.h"

#include <map>
#include <set>

using namespace keepsight;
using namespace keepsight::testing;

namespace {

constexpr int Heads = 3, Dim = 64;

const std::vector<std::string> stepSpecs = {
    "kivi", "kivi:group=16,residual=16", "kivi:bits=8,group=32,residual=64", "hqq_rtn", "hqq_rtn:axis_key=0,axis_value=1,residual=5",
    "hqq_rtn:axis_value=1,residual=1", "outlier_rtn:threshold=0.5,axis_value=1,residual=3", "outlier_rtn:residual=20", "kvquant",
    "kvquant:bits=3,outliers=0.05,first=4", "kvquant:first=0,outliers=0.3", "kvquant:outliers=0,bits=2", "layerquant", "layerquant:range_bits=16"};

// Runs the steps of a side as DecodeGraph does: the first of a kind as it is, the second is recorded, the others are replays. A replay is the step's work
// on the same tensors by the host's counts of when it was recorded, and countReplayed(): work that followed the host's counts, or that replaced a tensor,
// would come out wrong.
class Lane {
public:
    explicit Lane(std::unique_ptr<StoredSide> side) : m_side(static_cast<StoredParts*>(side.release())) {}
    StoredParts& side() { return *m_side; }
    std::size_t kinds() const { return m_recorded.size(); }
    int replays = 0;

    // entries: those that go, at most `most` of a head, or none announced. seen: called with what attention sees. False: the host must do it.
    bool step(const at::Tensor& x, const std::optional<Gone>& entries, int most, const std::function<void(const ops::PackedSide&)>& seen) {
        std::optional<std::string> key = m_side->nextStep(entries.has_value());
        if (!key) return false;
        if (entries) *key += std::to_string(most);
        Recorded& r = m_recorded[*key];
        const auto run = [&](StoredParts& side) {
            side.append(x);
            seen(side.packedView());
            if (entries) side.dropEntries(asTensor(*entries, most));
            side.settle(false);
        };
        if (r.side && r.layout == m_side->layout()) {
            m_side->countReplayed();
            run(*r.side->alias());
            ++replays;
        } else {
            if (r.ran) r.side = m_side->alias();
            r.ran = true;
            r.layout = m_side->layout();
            run(*m_side);
            if (r.layout != m_side->layout()) throw EngineError("a step replaced a tensor: " + *key);
        }
        if (entries) m_side->countDropped(*entries);
        return true;
    }

private:
    static at::Tensor asTensor(const Gone& entries, int most) {
        at::Tensor out = at::full({Heads, most}, -1, at::kInt);
        for (int h = 0; h < Heads; ++h)
            std::ranges::copy(entries[static_cast<std::size_t>(h)], out.data_ptr<std::int32_t>() + (h + 1) * most - std::ssize(entries[static_cast<std::size_t>(h)]));
        return out;
    }

    struct Recorded {
        std::unique_ptr<StoredParts> side;
        std::uint64_t layout = 0;
        bool ran = false;
    };
    std::unique_ptr<StoredParts> m_side;
    std::map<std::string, Recorded> m_recorded;
};

Selection without(const std::vector<std::int32_t>& held, const Gone& entries) {
    Selection out = Selection::all(held);
    for (std::size_t h = 0; h < held.size(); ++h)
        std::erase_if(out.keep[h], [&](std::int32_t i) { return std::ranges::binary_search(entries[h], i); });
    return out;
}

// A side under the host's eyes and one that steps, after the same prompt of 70 tokens; ragged: of which they kept some.
struct Start {
    std::unique_ptr<StoredSide> expected;
    Lane lane;
    std::vector<std::int32_t> held = std::vector<std::int32_t>(Heads, 70);

    Start(const QString& text, Side which, const SideShape& shape, unsigned seed, bool ragged)
        : expected(sideOf(text.toStdString(), which, shape)), lane(sideOf(text.toStdString(), which, shape)) {
        const Selection some = someOf(held, seed);
        for (StoredSide* side : {expected.get(), static_cast<StoredSide*>(&lane.side())}) {
            side->append(randomEntries(Heads, 70, Dim, seed, 3)), side->settle(true);
            if (ragged) side->keep(some);
        }
        if (ragged) held = countsOf(some);
    }
};

std::int32_t longestOf(const std::vector<std::int32_t>& held) { return *std::max_element(held.begin(), held.end()); }

} // namespace

class StoredStepsTest : public QObject {
    Q_OBJECT

    static void rows(const std::vector<std::string>& texts, std::initializer_list<at::ScalarType> types) {
        QTest::addColumn<QString>("text");
        QTest::addColumn<bool>("keys");
        QTest::addColumn<int>("type");
        for (const std::string& text : texts)
            for (const bool keys : {true, false})
                for (const at::ScalarType type : types)
                    QTest::addRow("%s %s %s", text.c_str(), keys ? "keys" : "values", c10::toString(type))
                        << QString::fromStdString(text) << keys << static_cast<int>(type);
    }

private Q_SLOTS:
    void attentionSeesWhatIsStored_data() { rows(specs(), {at::kFloat, at::kBFloat16, at::kHalf}); }
    void attentionSeesWhatIsStored() {
        QFETCH(QString, text);
        QFETCH(bool, keys);
        QFETCH(int, type);
        const SideShape shape = shapeOf(Heads, Dim, static_cast<at::ScalarType>(type));
        const auto side = sideOf(text.toStdString(), keys ? Side::keys : Side::values, shape);
        const auto check = [&](int held) {
            const ops::PackedSide view = side->packedView();
            const at::Tensor dense = side->dense(held + 3);
            return at::equal(denoted(view, held + 3, shape), dense) &&
                   (shape.dtype != at::kFloat || worst(ops::denseEntries(view, held + 3, at::kFloat), dense) < 1e-5);
        };
        std::vector<std::int32_t> held(Heads, 0);
        side->append(randomEntries(Heads, 70, Dim, 1, 3).to(shape.dtype));
        QVERIFY(check(70));
        side->settle(true);
        QVERIFY(check(70));
        held.assign(Heads, 70);
        for (unsigned round = 0; round < 2; ++round) {
            for (int i = 0; i < 25; ++i) {
                side->append(randomEntries(Heads, 1, Dim, 100 * round + static_cast<unsigned>(i), 3).to(shape.dtype));
                for (std::int32_t& n : held)
                    ++n;
                QVERIFY(check(longestOf(held)));
                side->settle(false);
                QVERIFY(check(longestOf(held)));
            }
            const Selection some = someOf(held, round);
            side->keep(some);
            held = countsOf(some);
            QVERIFY(check(longestOf(held)));
        }
        side->keep({std::vector<std::vector<std::int32_t>>(Heads)});
        QVERIFY(check(0));
    }

    void replaysDoWhatTheHostDoes_data() { rows(stepSpecs, {at::kFloat}); }
    void replaysDoWhatTheHostDoes() {
        QFETCH(QString, text);
        QFETCH(bool, keys);
        QFETCH(int, type);
        const SideShape shape = shapeOf(Heads, Dim, static_cast<at::ScalarType>(type));
        const Side which = keys ? Side::keys : Side::values;
        for (const bool ragged : {false, true}) {
            Start start(text, which, shape, 2, ragged);
            const auto& expected = start.expected;
            Lane& lane = start.lane;
            std::vector<std::int32_t>& held = start.held;
            int byHost = 0;
            for (int i = 0; i < 150; ++i) {
                const bool looked = i % 3 == 0; // what went wrong before still is
                const at::Tensor x = randomEntries(Heads, 1, Dim, 1000 + static_cast<unsigned>(i), 3);
                for (std::int32_t& n : held)
                    ++n;
                const std::int64_t capacity = longestOf(held) + 2;
                expected->append(x);
                const auto seen = [&](const ops::PackedSide& view) {
                    QVERIFY(!looked || at::equal(denoted(view, capacity, shape), expected->dense(capacity)));
                };
                if (!lane.step(x, {}, 0, seen)) lane.side().append(x), lane.side().settle(false), ++byHost;
                expected->settle(false);
                QCOMPARE(lane.side().packed(), expected->packed());
                QVERIFY(!looked || at::equal(lane.side().dense(capacity), expected->dense(capacity)));
                if (i % 7 == 0) QCOMPARE(lane.side().storedBytes(), expected->storedBytes());
            }
            QVERIFY2(lane.replays > 80, qPrintable(QString("%1 replays, %2 by the host").arg(lane.replays).arg(byHost)));
        }
    }

    void entriesGoWithoutTheHost_data() { rows(stepSpecs, {at::kFloat}); }
    void entriesGoWithoutTheHost() {
        QFETCH(QString, text);
        QFETCH(bool, keys);
        QFETCH(int, type);
        const SideShape shape = shapeOf(Heads, Dim, static_cast<at::ScalarType>(type));
        const Side which = keys ? Side::keys : Side::values;
        enum { anywhere, oldest, newest, seldom, several, many, Ways };
        for (int way = 0; way < Ways; ++way) {
            Start start(text, which, shape, 3, way % 2);
            const auto& expected = start.expected;
            Lane& lane = start.lane;
            std::vector<std::int32_t>& held = start.held;
            std::mt19937 random(static_cast<unsigned>(way) + 5);
            const int every = way == many ? 8 : way == seldom || way == several ? 3 : 1, most = way == many ? 13 : way == several ? 4 : 1;
            int byHost = 0;
            for (int i = 0; i < 110; ++i) {
                const bool looked = i % 3 == 0; // what went wrong before still is
                const at::Tensor x = randomEntries(Heads, 1, Dim, 2000 + static_cast<unsigned>(i), 3);
                const bool drops = i % every == 0;
                Gone entries;
                for (std::int32_t& n : held) {
                    ++n;
                    std::set<std::int32_t> some;
                    for (int draw = 0; drops && draw < most; ++draw) {
                        const std::int32_t any = static_cast<std::int32_t>(random() % static_cast<unsigned>(n + 2)) - 1; // −1: none; n: not there
                        some.insert(way == oldest ? 2 : way == newest ? n - 1 - static_cast<std::int32_t>(random() % 6) : any);
                    }
                    some.erase(-1);
                    entries.emplace_back(some.begin(), some.end());
                }
                const std::int64_t capacity = longestOf(held) + 2;
                expected->append(x);
                const auto seen = [&](const ops::PackedSide& view) {
                    QVERIFY(!looked || at::equal(denoted(view, capacity, shape), expected->dense(capacity)));
                };
                if (!lane.side().nextStep(false)) QVERIFY(!lane.side().nextStep(true)); // a step that drops nothing never needs the host more
                const bool done = lane.step(x, drops ? std::optional(entries) : std::nullopt, most, seen);
                if (!done) lane.side().append(x), ++byHost;
                if (drops) {
                    const Selection kept = without(held, entries);
                    expected->keep(kept);
                    if (!done) lane.side().keep(kept);
                    held = countsOf(kept);
                }
                expected->settle(false);
                if (!done) lane.side().settle(false);
                QCOMPARE(lane.side().packed(), expected->packed());
                if (!looked) continue;
                QVERIFY(at::equal(lane.side().dense(capacity), expected->dense(capacity)));
                QVERIFY(at::equal(denoted(lane.side().packedView(), capacity, shape), expected->dense(capacity)));
                QCOMPARE(lane.side().storedBytes(), expected->storedBytes());
            }
            QVERIFY2(lane.kinds() <= 4, qPrintable(QString("%1 kinds of steps").arg(lane.kinds()))); // before and after entries go, with and without it
            QVERIFY2(lane.replays > 55, qPrintable(QString("%1 replays, %2 by the host").arg(lane.replays).arg(byHost)));
        }
    }

    void theHostMayStepInAfterAll() { // what was announced is done by the host: another layer could not
        for (const char* text : {"kivi:group=16,residual=16", "hqq_rtn:axis_value=1,residual=5", "kvquant"})
            for (const Side which : {Side::keys, Side::values}) {
                const auto a = sideOf(text, which, shapeOf(Heads, Dim)), b = sideOf(text, which, shapeOf(Heads, Dim));
                std::vector<std::int32_t> held(Heads, 40);
                for (StoredSide* side : {a.get(), b.get()})
                    side->append(randomEntries(Heads, 40, Dim, 4)), side->settle(true);
                for (int i = 0; i < 60; ++i) {
                    const at::Tensor x = randomEntries(Heads, 1, Dim, 50 + static_cast<unsigned>(i));
                    b->nextStep(i % 2 == 0);
                    for (std::int32_t& n : held)
                        ++n;
                    const Selection kept = without(held, i % 4 == 0 ? Gone{{2, 39}, {3}, {held[2] - 1}} : Gone{{}, {3}, {}});
                    for (StoredSide* side : {a.get(), b.get()}) {
                        side->append(x);
                        if (i % 4 < 2) side->keep(kept);
                        side->settle(false);
                    }
                    if (i % 4 < 2) held = countsOf(kept);
                    QCOMPARE(b->packed(), a->packed());
                    QVERIFY(at::equal(b->dense(longestOf(held)), a->dense(longestOf(held))));
                    QCOMPARE(b->storedBytes(), a->storedBytes());
                }
            }
    }
    void entriesDoNotGoUnannounced() {
        const auto side = sideOf("kivi", Side::keys, shapeOf(Heads, Dim));
        side->append(randomEntries(Heads, 10, Dim, 1));
        QVERIFY_THROWS_EXCEPTION(EngineError, side->dropEntries(at::zeros({Heads, 1}, at::kInt)));
    }
};

QTEST_APPLESS_MAIN(StoredStepsTest)
#include "stored_steps_test.moc"
