// random: torch.rand's numbers, repeatable by seed.
#include "tests/support/layer_view.h"
#include "tests/support/tiny_model.h"

#include <QtTest>

using namespace keepsight;
using namespace keepsight::testing;

class RandomTest : public QObject {
    Q_OBJECT

    static Selection draw(const std::string& spec, int budget = 30) {
        const at::Tensor keys = at::zeros({3, 100, 8});
        return LayerFixture(keys, keys, at::zeros({3, 1, 8})).selection(*policyOf(spec, Budget::kept(budget)));
    }

private Q_SLOTS:
    void theNumbersAreTorchRands() {
        // torch.rand(1, 2, 4, generator=torch.Generator().manual_seed(42))
        const double expected[] = {0.8822692633, 0.9150039554, 0.3828637600, 0.9593056440, 0.3904482126, 0.6008953452, 0.2565724850, 0.7936413288};
        const at::Tensor keys = at::zeros({2, 4, 8});
        const LayerFixture f(keys, keys, at::zeros({2, 1, 8}));
        const auto policy = policyOf("random:seed=42", Budget::kept(2));
        const at::Tensor got = policy->score(f.view(), policy->planFor(f.place()), {}).reshape({-1});
        for (int i = 0; i < 8; ++i) QVERIFY2(std::abs(got[i].item<double>() - expected[i]) < 1e-7, qPrintable(QString::number(got[i].item<double>(), 'g', 10)));
    }
    void aSeedRepeatsAndAnotherDiffers() {
        QCOMPARE(draw("random:seed=3").keep, draw("random:seed=3").keep);
        QVERIFY(draw("random:seed=3").keep != draw("random").keep);
        QVERIFY(draw("random").keep[0] != draw("random").keep[1]); // heads draw for themselves
    }
    void aLargerBudgetKeepsTheSameAndMore() {
        const Selection few = draw("random", 10), more = draw("random", 60);
        for (std::size_t h = 0; h < 3; ++h)
            for (const std::int32_t i : few.keep[h]) QVERIFY(std::binary_search(more.keep[h].begin(), more.keep[h].end(), i));
    }
};

QTEST_APPLESS_MAIN(RandomTest)
#include "random_test.moc"
