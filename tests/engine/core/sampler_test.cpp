#include "engine/session/sampler.h"

#include <QtTest>
#include <cmath>
#include <map>

using namespace keepsight;

class SamplerTest : public QObject {
    Q_OBJECT

private Q_SLOTS:
    void greedyTakesTheFirstOfEqualMaxima() {
        QCOMPARE(sampleToken(std::vector<float>{1, 5, 5, 2}, {}, 0, 0), 1);
        QCOMPARE(argmaxToken(std::vector<float>{std::nanf(""), -3, -2}), 2);
    }
    void sameSeedAndDrawGiveTheSameToken() {
        const std::vector<float> logits{0.3f, 0.1f, 0.9f, -1.f, 0.5f};
        const SamplerSpec spec{1.0, 0.9};
        for (std::uint64_t draw = 0; draw < 50; ++draw) QCOMPARE(sampleToken(logits, spec, 42, draw), sampleToken(logits, spec, 42, draw));
    }
    void frequenciesFollowTheProbabilities() {
        const std::vector<float> logits{std::log(0.6f), std::log(0.3f), std::log(0.1f)};
        std::map<TokenId, int> count;
        for (std::uint64_t draw = 0; draw < 20000; ++draw) ++count[sampleToken(logits, {1.0, 1.0}, 7, draw)];
        QVERIFY(std::abs(count[0] / 20000.0 - 0.6) < 0.02);
        QVERIFY(std::abs(count[2] / 20000.0 - 0.1) < 0.02);
    }
    void nucleusLeavesTheTailOut() {
        const std::vector<float> logits{std::log(0.6f), std::log(0.3f), std::log(0.1f)};
        for (std::uint64_t draw = 0; draw < 2000; ++draw) QVERIFY(sampleToken(logits, {1.0, 0.7}, 7, draw) != 2);
    }
    void uniformLogitsCostTheLogOfTheVocabulary() {
        const std::vector<float> logits(1000, 3.5f);
        QVERIFY(std::abs(negativeLogLikelihood(logits, 17) - std::log(1000.0)) < 1e-9);
    }
};

QTEST_APPLESS_MAIN(SamplerTest)
#include "sampler_test.moc"
