#include "tests/kernels/support.h"

#include <ATen/Parallel.h>
#include <sys/mman.h>

using namespace keepsight;
using namespace keepsight::test;
using OptionalTensor = std::optional<at::Tensor>;

namespace {

const std::vector<std::pair<const char*, Stored>> types = {{"F32", Stored::f32},   {"F16", Stored::f16},   {"BF16", Stored::bf16},
                                                           {"Q4_0", Stored::q4_0}, {"Q4_1", Stored::q4_1}, {"Q8_0", Stored::q8_0}};

// linear() has one form more than the other operators: products of bytes.
const std::vector<const char*> forms = [] {
    std::vector<const char*> all = implementations;
    all.push_back("avx512vnni");
    return all;
}();

at::Tensor linearBy(const QString& name, const at::Tensor& x, const at::Tensor& packed, Stored type, int64_t columns,
                    const OptionalTensor& bias = {}) {
    if (name != "composite") return ops::linear(x, packed, static_cast<int64_t>(type), columns, bias);
    return composite<at::Tensor(const at::Tensor&, const at::Tensor&, int64_t, int64_t, const OptionalTensor&)>("linear").call(
        x, packed, static_cast<int64_t>(type), columns, bias);
}

std::vector<double> linearReference(const at::Tensor& x, const std::vector<double>& w, int64_t rows, const OptionalTensor& bias) {
    const std::vector<double> in = doubles(x);
    const int64_t columns = x.size(1);
    std::vector<double> out;
    for (int64_t s = 0; s < x.size(0); ++s)
        for (int64_t r = 0; r < rows; ++r) {
            double y = bias ? bias->to(at::kDouble)[r].item<double>() : 0;
            for (int64_t i = 0; i < columns; ++i)
                y += in[static_cast<size_t>(s * columns + i)] * w[static_cast<size_t>(r * columns + i)];
            out.push_back(y);
        }
    return out;
}

} // namespace

class LinearTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void cleanup() { QVERIFY(useCpuKernels("avx512vnni") || useCpuKernels("avx512") || useCpuKernels("avx2") || useCpuKernels("baseline")); }

    void product_data() {
        QTest::addColumn<QString>("implementation");
        QTest::addColumn<int>("stored");
        QTest::addColumn<int>("count");
        QTest::addColumn<int>("in");
        QTest::addColumn<int>("out");
        QTest::addColumn<bool>("bf16");
        QTest::addColumn<bool>("bias");
        for (const char* implementation : forms)
            for (const auto& [name, type] : types) {
                const bool blocks = blockValues(type) > 1;
                const auto row = [&](int count, int in, int out, bool bf16, bool bias) {
                    QTest::addRow("%s %s %d x %d -> %d%s%s", implementation, name, count, in, out, bf16 ? " bf16" : "", bias ? " bias" : "")
                        << QString(implementation) << static_cast<int>(type) << count << in << out << bf16 << bias;
                };
                row(1, blocks ? 32 : 1, 1, false, false);
                row(1, blocks ? 96 : 31, 33, false, true);
                row(1, blocks ? 576 : 577, 31, true, false);
                row(2, blocks ? 1536 : 1537, 30, false, false);
                row(5, blocks ? 128 : 127, 4, false, true);
                row(3, blocks ? 64 : 33, 31, false, false);
                row(7, blocks ? 160 : 100, 131, true, true);
                row(8, 64, 33, false, true);
                row(17, blocks ? 64 : 33, 33, true, true);
                row(25, blocks ? 64 : 33, 33, false, true);
                row(33, blocks ? 96 : 97, 65, true, true);
            }
        QTest::addRow("many output rows, in chunks")
            << QString("avx2") << static_cast<int>(Stored::q8_0) << 25 << 2048 << 4097 << false << true;
    }
    void product() {
        QFETCH(QString, implementation);
        QFETCH(int, stored);
        QFETCH(int, count);
        QFETCH(int, in);
        QFETCH(int, out);
        QFETCH(bool, bf16);
        QFETCH(bool, bias);
        if (!choose(implementation)) QSKIP("this processor lacks the instruction set");
        const auto type = static_cast<Stored>(stored);
        const at::Tensor packed = packedRows(type, out, in, 7);
        const at::Tensor x = random({count, in}, 3, bf16 ? at::kBFloat16 : at::kFloat);
        const OptionalTensor b = bias ? OptionalTensor(random({out}, 5)) : std::nullopt;
        const at::Tensor y = linearBy(implementation, x, packed, type, in, b);
        QCOMPARE(y.scalar_type(), x.scalar_type());
        KEEPSIGHT_VERIFY_DIFFERENCE(doubles(y), linearReference(x, unpacked(packed, type, in), out, b),
                                    bf16 ? 0.02 : 3e-6 + 3e-7 * std::sqrt(in));
    }

    // Activations as models have them, and worse; judged by what the format's weights give in fp64, relative to the sum of absolute products.
    void unevenActivations_data() {
        QTest::addColumn<QString>("implementation");
        QTest::addColumn<int>("stored");
        QTest::addColumn<QString>("kind");
        for (const char* implementation : forms)
            for (const auto& [name, type] : types)
                for (const char* kind : {"even", "outlier", "zeros", "huge blocks", "tiny", "tiny and huge blocks", "greatest bytes", "positive", "bf16"})
                    QTest::addRow("%s %s %s", implementation, name, kind) << QString(implementation) << static_cast<int>(type) << QString(kind);
    }
    void unevenActivations() {
        QFETCH(QString, implementation);
        QFETCH(int, stored);
        QFETCH(QString, kind);
        if (!choose(implementation)) QSKIP("this processor lacks the instruction set");
        constexpr int64_t columns = 608, rows = 37, count = 3;
        const auto type = static_cast<Stored>(stored);
        const at::Tensor packed = packedRows(type, rows, columns, 7);
        at::Tensor x = random({count, columns}, 3);
        if (kind == "outlier") x.select(1, 70).mul_(1000);
        if (kind == "zeros") x.zero_(), x.select(0, 1).narrow(0, 40, 5).fill_(0.25f);
        if (kind == "huge blocks") x.narrow(1, 64, 96).mul_(1e30f);
        if (kind == "tiny") x.mul_(1e-20f);
        if (kind == "tiny and huge blocks") x.narrow(1, 0, 32).mul_(1e-40f), x.narrow(1, 32, 64).mul_(1e30f), x.narrow(1, 96, 96).mul_(1e-20f);
        if (kind == "greatest bytes") // to both sides of the greatest number of three signed bytes: ±(127.5 · 2^16 − …) / 2^22
            for (int64_t i = 0; i < columns; ++i) x.select(1, i).fill_((i % 2 ? -1.f : 1.f) * (8355705.f + static_cast<float>(i / 32)) / 4194304.f);
        if (kind == "positive") x.abs_();
        if (kind == "bf16") x = x.to(at::kBFloat16).to(at::kFloat);
        const std::vector<double> w = unpacked(packed, type, columns), in = doubles(x), y = doubles(linearBy(implementation, x, packed, type, columns)),
                                  expected = linearReference(x, w, rows, {});
        for (size_t s = 0; s < count; ++s)
            for (size_t r = 0; r < rows; ++r) {
                double size = 0; // of the products before the minimum and 8·d are taken off: what roundings are relative to
                for (size_t i = 0; i < columns; ++i)
                    size += std::abs(in[s * columns + i]) * std::max(0.02, std::abs(w[r * columns + i]));
                const double error = std::abs(y[s * rows + r] - expected[s * rows + r]);
                QVERIFY2(error <= 2e-6 * size + 1e-30, qPrintable(QString("x %1, row %2: error %3 of %4").arg(s).arg(r).arg(error).arg(size)));
            }
    }

    void whatIsNotFiniteShows_data() {
        QTest::addColumn<QString>("implementation");
        QTest::addColumn<int>("stored");
        for (const char* implementation : forms)
            for (const auto& [name, type] : types)
                QTest::addRow("%s %s", implementation, name) << QString(implementation) << static_cast<int>(type);
    }
    void whatIsNotFiniteShows() {
        QFETCH(QString, implementation);
        QFETCH(int, stored);
        if (!choose(implementation)) QSKIP("this processor lacks the instruction set");
        const auto type = static_cast<Stored>(stored);
        const at::Tensor packed = packedRows(type, 9, 192, 7);
        at::Tensor x = random({6, 192}, 3);
        x[0][0] = INFINITY, x[1][191] = -INFINITY, x[2][100] = NAN, x[3][130] = -NAN, x[4][17] = 1e36f;
        const at::Tensor y = linearBy(implementation, x, packed, type, 192), finite = y.isfinite();
        QVERIFY(!finite.narrow(0, 0, 4).any().item<bool>());
        QVERIFY(finite.narrow(0, 4, 2).all().item<bool>());
        if (implementation != "composite") QVERIFY(sameBits(y[5], ops::linear(x.narrow(0, 5, 1), packed, stored, 192)[0])); // the others do not matter
    }

    void rowsAreDequantizedExactly_data() {
        QTest::addColumn<QString>("implementation");
        for (const char* name : implementations)
            QTest::newRow(name) << QString(name);
    }
    void rowsAreDequantizedExactly() {
        QFETCH(QString, implementation);
        if (!choose(implementation)) QSKIP("this processor lacks the instruction set");
        for (const auto& [name, type] : types)
            for (int64_t columns : {int64_t(32), int64_t(4096), blockValues(type) > 1 ? int64_t(64) : int64_t(4097)}) {
                const at::Tensor packed = packedRows(type, 33, columns, 11);
                const auto number = static_cast<int64_t>(type);
                const at::Tensor ids = at::arange(32, -1, -1, at::kLong);
                at::Tensor all, rows;
                if (implementation == "composite") {
                    all = composite<at::Tensor(const at::Tensor&, int64_t, int64_t, at::ScalarType)>("dequantize")
                              .call(packed, number, columns, at::kFloat);
                    rows = composite<at::Tensor(const at::Tensor&, const at::Tensor&, int64_t, int64_t, at::ScalarType)>("embedding")
                               .call(ids, packed, number, columns, at::kBFloat16);
                } else {
                    all = ops::dequantize(packed, number, columns, at::kFloat);
                    rows = ops::embedding(ids, packed, number, columns, at::kBFloat16);
                }
                QVERIFY2(doubles(all) == unpacked(packed, type, columns), name);
                QVERIFY2(sameBits(rows, all.flip(0).to(at::kBFloat16)), name);
            }
    }

    void aRowDoesNotDependOnItsCompany_data() { whatIsNotFiniteShows_data(); }
    void aRowDoesNotDependOnItsCompany() {
        QFETCH(QString, implementation);
        QFETCH(int, stored);
        if (implementation == "composite" || !choose(implementation)) QSKIP("not promised, or this processor lacks the instruction set");
        const auto type = static_cast<Stored>(stored);
        const at::Tensor packed = packedRows(type, 131, 576, 1), x = random({23, 576}, 2);
        const at::Tensor together = ops::linear(x, packed, stored, 576);
        for (int64_t s = 0; s < 23; ++s)
            QVERIFY(sameBits(ops::linear(x.narrow(0, s, 1), packed, stored, 576), together.narrow(0, s, 1)));
        for (int64_t r = 0; r < 131; r += 13) // nor rows of the matrix on theirs
            QVERIFY(sameBits(ops::linear(x, packed.narrow(0, r, 1), stored, 576), together.narrow(1, r, 1)));
        const int threads = at::get_num_threads();
        for (int n : {1, 3}) {
            at::set_num_threads(n);
            QVERIFY(sameBits(ops::linear(x, packed, stored, 576), together));
        }
        at::set_num_threads(threads);
    }

    void runsAreBitEqual() {
        const at::Tensor packed = packedRows(Stored::q8_0, 513, 576, 1);
        for (int64_t count : {1, 5, 64}) {
            const at::Tensor x = random({count, 576}, 2);
            QVERIFY(sameBits(ops::linear(x, packed, 8, 576), ops::linear(x, packed, 8, 576)));
        }
    }

    // A group of blocks that ends early is read to its end only: the last row ends at an unreadable page.
    void nothingBehindTheMatrixIsRead_data() { whatIsNotFiniteShows_data(); }
    void nothingBehindTheMatrixIsRead() {
        QFETCH(QString, implementation);
        QFETCH(int, stored);
        if (implementation == "composite" || !choose(implementation)) QSKIP("a torch matter, or this processor lacks the instruction set");
        const auto type = static_cast<Stored>(stored);
        constexpr size_t page = 4096;
        auto* memory = static_cast<uint8_t*>(mmap(nullptr, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        QVERIFY(memory != MAP_FAILED && mprotect(memory + 3 * page, page, PROT_NONE) == 0);
        for (int64_t columns : {32, 64, 96, 128, 160}) {
            const at::Tensor packed = packedRows(type, 5, columns, 1), x = random({3, columns}, 2);
            uint8_t* data = memory + 3 * page - packed.nbytes();
            std::memcpy(data, packed.const_data_ptr(), packed.nbytes());
            const at::Tensor atEnd = at::from_blob(data, packed.sizes(), at::kByte);
            QVERIFY(sameBits(ops::linear(x, atEnd, stored, columns), ops::linear(x, packed, stored, columns)));
        }
        munmap(memory, 4 * page);
    }

    void stridedInputsAreTaken() {
        const at::Tensor packed = packedRows(Stored::q8_0, 33, 64, 1), x = random({64, 3}, 2).t();
        QVERIFY(!x.is_contiguous());
        QVERIFY(sameBits(ops::linear(x, packed, 8, 64), ops::linear(x.contiguous(), packed, 8, 64)));
        const at::Tensor wide = at::zeros({33, 100}, at::kByte);
        wide.narrow(1, 3, 68).copy_(packed); // odd address, gaps between rows
        QVERIFY(sameBits(ops::linear(x, wide.narrow(1, 3, 68), 8, 64), ops::linear(x, packed, 8, 64)));
    }

    void emptyInputsGiveEmptyResults() {
        const at::Tensor packed = packedRows(Stored::q8_0, 33, 64, 1);
        QCOMPARE(ops::linear(at::empty({0, 64}), packed, 8, 64).size(0), int64_t(0));
        QCOMPARE(ops::embedding(at::empty({0}, at::kLong), packed, 8, 64, at::kFloat).size(0), int64_t(0));
    }

    void badArgumentsAreRefused() {
        const at::Tensor packed = packedRows(Stored::q4_1, 8, 64, 1), x = random({2, 64}, 2);
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::linear(x, packed, 4, 64)); // unknown type
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::linear(x, packed, 3, 63)); // no whole blocks
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::linear(x, packed, 8, 64)); // row of another type
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::linear(random({2, 32}, 2), packed, 3, 64));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::linear(x.to(at::kHalf), packed, 3, 64));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::linear(x, packed, 3, 64, random({9}, 1)));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::linear(at::Tensor(), packed, 3, 64));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::embedding(at::tensor({0, 8}, at::kLong), packed, 3, 64, at::kFloat));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::embedding(at::tensor({-1}, at::kLong), packed, 3, 64, at::kFloat));
        QVERIFY_THROWS_EXCEPTION(EngineError, ops::dequantize(packed, 3, 64, at::kLong));
    }
};

QTEST_APPLESS_MAIN(LinearTest)
#include "linear_test.moc"
