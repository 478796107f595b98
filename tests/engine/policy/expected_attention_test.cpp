// expected_attention against the definition in plain loops.
#include "tests/support/layer_view.h"
#include "tests/support/tiny_model.h"

#include <QtTest>

using namespace keepsight;
using namespace keepsight::testing;

class ExpectedAttentionTest : public QObject {
    Q_OBJECT

    static constexpr int N = 60, Size = 8, QueryHeads = 4, KvHeads = 2;
    at::Tensor m_keys, m_values, m_plain; // plain: queries before RoPE [QueryHeads, N, Size]

    QueryMoments moments(int sinks) const {
        const at::Tensor q = m_plain.narrow(1, sinks, N - sinks).to(at::kDouble);
        return {q.sum(1), at::matmul(q.transpose(1, 2), q), N - sinks};
    }
    at::Tensor scores(const std::string& spec, int sinks = 4) const {
        const LayerFixture f(m_keys, m_values, m_plain.narrow(1, N - 1, 1));
        const QueryMoments m = moments(sinks);
        LayerView view = f.view();
        view.moments = &m;
        const auto policy = policyOf(spec, Budget::kept(20));
        return policy->score(view, policy->planFor(f.place()), {});
    }
    // Rotates every query to every future position and averages first and second moments there.
    at::Tensor reference(int sinks, int future, bool covariance, bool valueNorm, double epsilon) const {
        ModelConfig config;
        config.headDim = Size;
        const at::Tensor inverse = ropeInverseFrequencies(config).to(at::kDouble);
        at::Tensor rotation = at::zeros({Size, Size}, at::kDouble);
        for (int p = N; p < N + future; ++p)
            for (int i = 0; i < Size / 2; ++i) {
                const double angle = p * inverse[i].item<double>(), c = std::cos(angle) / future, s = std::sin(angle) / future;
                rotation[i][i] += c;
                rotation[i + Size / 2][i + Size / 2] += c;
                rotation[i][i + Size / 2] -= s;
                rotation[i + Size / 2][i] += s;
            }
        at::Tensor out = at::zeros({KvHeads, N}, at::kDouble);
        for (int h = 0; h < QueryHeads; ++h) {
            const at::Tensor q = m_plain[h].narrow(0, sinks, N - sinks).to(at::kDouble), mu = q.mean(0), centred = q - mu;
            const at::Tensor sigma = at::matmul(rotation, at::matmul(at::matmul(centred.t(), centred) / (N - sinks), rotation.t())), bar = at::mv(rotation, mu);
            const at::Tensor k = m_keys[h / 2].narrow(0, sinks, N - sinks).to(at::kDouble);
            at::Tensor exponent = at::mv(k, bar) / std::sqrt(8.0);
            if (covariance) exponent = exponent + (at::matmul(k, sigma) * k).sum(1) / Size / 2;
            out[h / 2].narrow(0, sinks, N - sinks).add_(at::softmax(exponent, 0) / 2);
        }
        if (valueNorm) out = (out + epsilon) * m_values.to(at::kDouble).norm(2, {2});
        out.narrow(1, 0, sinks).zero_();
        return out;
    }

private Q_SLOTS:
    void initTestCase() {
        at::manual_seed(9);
        m_keys = at::randn({KvHeads, N, Size});
        m_values = at::randn({KvHeads, N, Size});
        m_plain = at::randn({QueryHeads, N, Size}) + 2 * at::randn({QueryHeads, 1, Size});
    }
    void equalsTheDefinition() {
        QVERIFY(at::allclose(scores("expected_attention").to(at::kDouble), reference(4, 512, true, true, 0), 1e-4, 1e-7));
        QVERIFY(at::allclose(scores("expected_attention:future=7,epsilon=0.01").to(at::kDouble), reference(4, 7, true, true, 0.01), 1e-4, 1e-7));
        QVERIFY(at::allclose(scores("expected_attention:covariance=off,vnorm=off").to(at::kDouble), reference(4, 512, false, false, 0), 1e-4, 1e-7));
        QVERIFY(at::allclose(scores("expected_attention:sinks=0", 0).to(at::kDouble), reference(0, 512, true, true, 0), 1e-4, 1e-7));
    }
    void sinksAlwaysStay() {
        const LayerFixture f(m_keys, m_values, m_plain.narrow(1, N - 1, 1));
        const QueryMoments m = moments(4);
        LayerView view = f.view();
        view.moments = &m;
        const auto policy = policyOf("expected_attention", Budget::kept(6));
        const Plan plan = policy->planFor(f.place());
        const Selection s = policy->choose(view, f.place(), plan, policy->score(view, plan, {}), nullptr, nullptr);
        for (const auto& keep : s.keep)
            for (int t = 0; t < 4; ++t) QCOMPARE(keep[static_cast<std::size_t>(t)], t);
    }
    void asksForTheMomentsBehindItsSinks() {
        QCOMPARE(policyOf("expected_attention", {})->needs(100).queryMoments, 4);
        QCOMPARE(policyOf("expected_attention:sinks=9", {})->needs(100).queryMoments, 9);
        // A prompt of nothing but sinks: the newest stay.
        const LayerFixture f(m_keys, m_values, m_plain.narrow(1, N - 1, 1));
        const auto policy = policyOf("expected_attention", Budget::kept(6));
        QVERIFY(!policy->score(f.view(), policy->planFor(f.place()), {}).defined());
    }
    void theModelsMomentsAreThoseOfItsQueries() {
        const auto model = tinyModel();
        const auto policy = policyOf("expected_attention", Budget::kept(50));
        const auto snapshot = prefillFor(*model, tinyIds(700), policy); // two blocks
        const QueryMoments& m = *snapshot->view(LayerIndex{1}).moments;
        QCOMPARE(m.count, std::int64_t{696});
        const Snapshot::Choice choice = snapshot->choose(*policy);
        for (const auto& keep : choice.selections[1].keep) QCOMPARE(static_cast<int>(keep.size()), 50);
    }

    // The prompt's moments go on judging: the entries that go are not simply the oldest behind the sinks.
    void goesOnWhileDecoding() {
        const std::unique_ptr<Model> model = tinyModel();
        const auto policy = policyOf("expected_attention:timing=each_step", Budget::kept(20));
        Branch branch(*model, prefillFor(*model, tinyIds(60), policy), policy, {.headroom = 40});
        branch.takeEvictions();
        int oldest = 0, others = 0;
        for (const TokenId id : tinyIds(30, 3)) {
            std::vector<Position> first; // behind the sinks, per layer and head, before the step
            for (int l = 0; l < 2; ++l)
                for (int h = 0; h < 2; ++h) first.push_back(branch.cache().layer(LayerIndex{l}).positions[h][4].item<Position>());
            branch.feed(std::span(&id, 1), LogitRows::last, true, {});
            for (const Branch::Eviction& e : branch.takeEvictions()) {
                QCOMPARE(e.positions.size(), std::size_t{1});
                ++(e.positions.front() == first[static_cast<std::size_t>(e.layer.value * 2 + e.head.value)] ? oldest : others);
            }
        }
        QCOMPARE(oldest + others, 30 * 4);
        QVERIFY2(others > 30, qPrintable(QString("%1 of 120 were not the oldest").arg(others)));
    }
};

QTEST_APPLESS_MAIN(ExpectedAttentionTest)
#include "expected_attention_test.moc"
