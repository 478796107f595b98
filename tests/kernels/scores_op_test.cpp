// lag_spread and quadratic_forms against fp64.
#include "tests/kernels/support.h"

using namespace keepsight;
using namespace keepsight::test;

namespace {

at::Tensor spreadOf(const at::Tensor& x, int64_t lag) { // [H, P·lag, D] → [H, (P − 1)·lag] fp64
    const at::Tensor parts = x.to(at::kDouble).unflatten(1, {-1, lag});
    const int64_t heads = parts.size(0), scored = parts.size(1) - 1, dim = x.size(2);
    at::Tensor out = at::zeros({heads, scored * lag}, at::kDouble);
    for (int64_t h = 0; h < heads; ++h)
        for (int64_t p = 0; p < scored; ++p)
            for (int64_t t = 0; t < lag; ++t) {
                std::vector<double> scaled;
                double sum = 0, squares = 0;
                for (int64_t c = 0; c < dim; ++c) {
                    const at::Tensor behind = parts[h][p + 1].select(1, c);
                    const double low = behind.min().item<double>(), range = std::max(behind.max().item<double>() - low, 1e-6);
                    scaled.push_back((parts[h][p][t][c].item<double>() - low) / range);
                    sum += scaled.back();
                }
                for (const double s : scaled) squares += (s - sum / static_cast<double>(dim)) * (s - sum / static_cast<double>(dim));
                out[h][p * lag + t] = std::sqrt(squares / static_cast<double>(dim - 1));
            }
    return out;
}

} // namespace

class ScoresOpTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void cleanup() { QVERIFY(useCpuKernels("avx512vnni") || useCpuKernels("avx512") || useCpuKernels("avx2") || useCpuKernels("baseline")); }

    void spreadMatchesTheDefinition_data() {
        QTest::addColumn<QString>("implementation");
        QTest::addColumn<int>("lag");
        QTest::addColumn<int>("dim");
        QTest::addColumn<bool>("bf16");
        for (const char* name : implementations)
            for (const int lag : {1, 7, 33})
                for (const int dim : {6, 64, 80, 130})
                    for (const bool bf16 : {false, true}) QTest::addRow("%s lag %d dim %d%s", name, lag, dim, bf16 ? " bf16" : "") << QString(name) << lag << dim << bf16;
    }
    void spreadMatchesTheDefinition() {
        QFETCH(QString, implementation);
        QFETCH(int, lag);
        QFETCH(int, dim);
        QFETCH(bool, bf16);
        if (!choose(implementation)) QSKIP("this processor lacks the instruction set");
        // Of a longer cache, behind its sinks: rows of a head do not touch those of the next.
        at::Tensor cache = random({2, 4 + 3 * lag + 5, dim}, 1, bf16 ? at::kBFloat16 : at::kFloat, 2);
        cache.select(2, 1).fill_(0.5); // a channel that never changes
        const at::Tensor x = cache.narrow(1, 4, 3 * lag);
        const auto run = [&] { return implementation == "composite" ? composite<at::Tensor(const at::Tensor&, int64_t)>("lag_spread").call(x, lag) : ops::lag_spread(x, lag); };
        const at::Tensor found = run(), expected = spreadOf(x, lag);
        QCOMPARE(found.sizes(), expected.sizes());
        QVERIFY((found.to(at::kDouble) - expected).abs().max().item<double>() <= 2e-5 * std::max(1.0, expected.max().item<double>()));
        QVERIFY(sameBits(found, run()));
    }
    void onePartitionHasNothingBehindIt() { QCOMPARE(ops::lag_spread(random({3, 8, 4}, 1), 8).sizes(), (std::vector<int64_t>{3, 0})); }

    void formsMatchTheDefinition_data() {
        QTest::addColumn<bool>("bf16");
        QTest::addColumn<int>("count");
        QTest::addColumn<int>("group");
        for (const bool bf16 : {false, true})
            for (const int count : {0, 1, 33, 4097})
                for (const int group : {1, 3}) QTest::addRow("%d keys, groups of %d%s", count, group, bf16 ? ", bf16" : "") << bf16 << count << group;
    }
    void formsMatchTheDefinition() {
        QFETCH(bool, bf16);
        QFETCH(int, count);
        QFETCH(int, group);
        constexpr int Heads = 2, Dim = 20;
        const at::Tensor keys = random({Heads, count + 3, Dim}, 1, bf16 ? at::kBFloat16 : at::kFloat).narrow(1, 3, count), forms = random({Heads * group, Dim, Dim}, 2);
        const at::Tensor found = ops::quadratic_forms(keys, forms), wide = keys.to(at::kDouble).repeat_interleave(group, 0);
        const at::Tensor expected = (at::bmm(wide, forms.to(at::kDouble)) * wide).sum(2);
        QCOMPARE(found.sizes(), expected.sizes());
        if (count > 0) QVERIFY((found.to(at::kDouble) - expected).abs().max().item<double>() < 2e-4);
    }

    void refusesWhatDoesNotFit() {
        const at::Tensor x = random({2, 12, 8}, 1);
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::lag_spread(x, 5));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::lag_spread(x, 0));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::lag_spread(x.select(0, 0), 4));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::quadratic_forms(x, random({3, 8, 8}, 1)));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::quadratic_forms(x, random({2, 8, 7}, 1)));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::quadratic_forms(x, random({2, 8, 8}, 1).to(at::kBFloat16)));
    }
};

QTEST_APPLESS_MAIN(ScoresOpTest)
#include "scores_op_test.moc"
