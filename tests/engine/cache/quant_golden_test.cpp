// Against plain numpy references: tests/golden/make_quantizers.py.
#include "tests/engine/cache/support.h"

#include <QFile>
#include <nlohmann/json.hpp>

using namespace keepsight;
using namespace keepsight::testing;

class QuantGoldenTest : public QObject {
    Q_OBJECT

    nlohmann::json m_golden;

    at::Tensor tensor(const nlohmann::json& numbers, const char* tokens) const {
        const auto values = numbers.get<std::vector<float>>();
        return at::tensor(at::ArrayRef<float>(values), at::kFloat)
            .view({m_golden["heads"].get<std::int64_t>(), m_golden[tokens].get<std::int64_t>(), -1})
            .clone();
    }

private Q_SLOTS:
    void initTestCase() {
        QFile file(QString(KEEPSIGHT_GOLDEN) + "/quantizers.json");
        QVERIFY(file.open(QIODevice::ReadOnly));
        m_golden = nlohmann::json::parse(file.readAll().toStdString());
    }
    void readsWhatNumpyReads_data() {
        QTest::addColumn<int>("index");
        for (std::size_t i = 0; i < m_golden["cases"].size(); ++i)
            QTest::addRow("%s %s", m_golden["cases"][i]["quantizer"].get<std::string>().c_str(),
                          m_golden["cases"][i]["side"].get<std::string>().c_str())
                << static_cast<int>(i);
    }
    void readsWhatNumpyReads() {
        QFETCH(int, index);
        const auto& golden = m_golden["cases"][static_cast<std::size_t>(index)];
        const auto q = makeQuantizer(parseQuantSpec(golden["quantizer"].get<std::string>()));
        const at::Tensor x = tensor(m_golden["x"], "tokens"), expected = tensor(golden["read"], "tokens");
        if (q->wantsCalibration())
            q->calibrate({{tensor(m_golden["sample_keys"], "sample")}, {tensor(m_golden["sample_values"], "sample")}});
        const auto side = q->make(golden["side"] == "keys" ? Side::keys : Side::values, LayerIndex{0},
                                  shapeOf(static_cast<int>(x.size(0)), static_cast<int>(x.size(2))));
        const std::int64_t tokens = x.size(1), prompt = tokens - m_golden["decoded"].get<std::int64_t>();
        side->append(x.narrow(1, 0, prompt));
        side->settle(true);
        for (std::int64_t t = prompt; t < tokens; ++t) {
            side->append(x.narrow(1, t, 1));
            side->settle(false);
        }
        const at::Tensor difference = (side->dense(tokens) - expected).abs() / (expected.abs() + 1);
        QVERIFY2(difference.max().item<double>() < 5e-5, qPrintable(QString("largest relative difference %1, at %2 values of %3")
                                                                        .arg(difference.max().item<double>())
                                                                        .arg((difference > 5e-5).sum().item<int>())
                                                                        .arg(difference.numel())));
    }
};

QTEST_APPLESS_MAIN(QuantGoldenTest)
#include "quant_golden_test.moc"
