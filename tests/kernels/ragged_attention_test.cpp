// ragged_attention against attention() over the same heads side by side.
#include "engine/data/error.h"
#include "kernels/bind/ops.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <QtTest>

using namespace keepsight;

class RaggedAttentionTest : public QObject {
    Q_OBJECT

    struct Case {
        at::Tensor q, k, v, positions, starts, lengths, queryPositions; // ragged
        at::Tensor denseK, denseV, densePositions;                      // the same, [heads, capacity, …]
        std::int64_t capacity = 0;
    };
    static Case make(const std::vector<std::int32_t>& held, std::int64_t group, std::int64_t queries, std::int64_t dim, at::ScalarType type) {
        Case c;
        const auto heads = static_cast<std::int64_t>(held.size());
        std::vector<std::int32_t> starts;
        std::int32_t rows = 0, most = 0;
        for (const std::int32_t n : held) starts.push_back(rows), rows += n + 3, most = std::max(most, n + 3);
        c.capacity = most;
        c.q = at::randn({heads * group, queries, dim}).to(type);
        c.k = at::randn({rows, dim}).to(type), c.v = at::randn({rows, dim}).to(type);
        c.starts = at::tensor(starts, at::kInt), c.lengths = at::tensor(held, at::kInt);
        c.positions = at::empty({rows}, at::kInt);
        c.denseK = at::zeros({heads, most, dim}, c.k.options()), c.denseV = at::zeros_like(c.denseK);
        c.densePositions = at::zeros({heads, most}, at::kInt);
        for (std::int64_t h = 0; h < heads; ++h) {
            const std::int64_t n = held[static_cast<std::size_t>(h)], start = starts[static_cast<std::size_t>(h)];
            c.positions.narrow(0, start, n + 3).copy_(at::arange(n + 3, at::kInt) * 2 + h % 2);
            c.densePositions[h].narrow(0, 0, n).copy_(c.positions.narrow(0, start, n));
            c.denseK[h].narrow(0, 0, n).copy_(c.k.narrow(0, start, n));
            c.denseV[h].narrow(0, 0, n).copy_(c.v.narrow(0, start, n));
        }
        c.queryPositions = at::arange(most, most + queries, at::kInt); // the longest heads have entries that are not seen
        return c;
    }
    static ops::AttentionStats stats(const Case& c) {
        ops::AttentionStats s;
        s.columnSum = at::zeros({c.q.size(0), c.capacity});
        s.lastRows = at::zeros({c.q.size(0), 1, c.capacity});
        s.map = at::zeros({c.starts.size(0), 4, 8});
        s.mapRowBegin = c.capacity, s.rowBin = 2, s.colBin = 16;
        return s;
    }

private Q_SLOTS:
    void equalsHeadsSideBySide() {
        at::manual_seed(5);
        for (const std::vector<std::int32_t>& held : {std::vector<std::int32_t>{7, 300, 0, 33}, {1, 1}, {64, 4097, 31}})
            for (const std::int64_t group : {1, 3})
                for (const std::int64_t queries : {1, 5})
                    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
                        const Case c = make(held, group, queries, 64, type);
                        ops::AttentionStats a = stats(c), b = stats(c);
                        const at::Tensor x = ops::ragged_attention(c.q, c.k, c.v, c.positions, c.starts, c.lengths, c.capacity, c.queryPositions, 0.125, &a);
                        const at::Tensor y = ops::attention(c.q, c.denseK, c.denseV, c.densePositions, c.lengths, c.queryPositions, 0.125, &b);
                        QVERIFY(at::equal(x, y));
                        QVERIFY(at::equal(a.columnSum, b.columnSum) && at::equal(a.lastRows, b.lastRows) && at::equal(a.map, b.map));
                        QVERIFY(a.map.sum().item<float>() > 0);
                    }
    }
    void theCompositeAgrees() {
        at::manual_seed(6);
        const Case c = make({20, 90, 3}, 2, 3, 64, at::kFloat);
        using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t, const at::Tensor&,
                                     double, const std::optional<at::Tensor>&, const std::optional<at::Tensor>&, const std::optional<at::Tensor>&, int64_t, int64_t, int64_t);
        const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("keepsight::ragged_attention", "").typed<Signature>();
        const at::Tensor x = op.redispatch(c10::DispatchKeySet(c10::DispatchKey::CompositeExplicitAutograd), c.q, c.k, c.v, c.positions, c.starts, c.lengths, c.capacity,
                                           c.queryPositions, 0.125, {}, {}, {}, 0, 1, 1);
        const at::Tensor y = ops::ragged_attention(c.q, c.k, c.v, c.positions, c.starts, c.lengths, c.capacity, c.queryPositions, 0.125);
        QVERIFY(at::allclose(x, y, 1e-5, 1e-5));
    }
    void refusesWhatDoesNotFit() {
        const Case c = make({5, 9}, 2, 1, 64, at::kFloat);
        const auto run = [&](const at::Tensor& starts, const at::Tensor& lengths, std::int64_t capacity) {
            ops::ragged_attention(c.q, c.k, c.v, c.positions, starts, lengths, capacity, c.queryPositions, 0.125);
        };
        run(c.starts, c.lengths, c.capacity);
        QVERIFY_EXCEPTION_THROWN(run(c.starts + 30, c.lengths, c.capacity), EngineError);
        QVERIFY_EXCEPTION_THROWN(run(c.starts, c.lengths, 8), EngineError);
        QVERIFY_EXCEPTION_THROWN(run(c.starts, c.lengths, 1000), EngineError);
        QVERIFY_EXCEPTION_THROWN(run(c.starts.to(at::kLong), c.lengths, c.capacity), EngineError);
    }
};

QTEST_APPLESS_MAIN(RaggedAttentionTest)
#include "ragged_attention_test.moc"
