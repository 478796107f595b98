// Prompts fit their length, hold the key where they say, and answers are scored. Needs the tokenizer only, no tensors.
#include "engine/data/error.h"
#include "engine/eval/passkey.h"

#include <QtTest>

#include <algorithm>
#include <cmath>

using namespace keepsight;

namespace {

struct DefaultModel {
    std::unique_ptr<WeightFile> file = openWeights(std::string(KEEPSIGHT_BUILD) + "/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    std::unique_ptr<Tokenizer> tokenizer = makeTokenizer(file->tokenizer());
    ChatFrame frame = chatFrameFor(file->tokenizer().chatTemplate);
};
const DefaultModel& model() {
    static const DefaultModel instance;
    return instance;
}

std::string between(const PasskeyPrompt& prompt, Position begin, Position end) {
    return model().tokenizer->decode({prompt.context.begin() + begin, prompt.context.begin() + end});
}

} // namespace

class PasskeyTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void promptsFitTheirLength_data() {
        QTest::addColumn<int>("length");
        QTest::addColumn<double>("depth");
        QTest::addColumn<int>("digits");
        QTest::addColumn<bool>("framed");
        for (const int length : {250, 1000, 4000})
            for (const double depth : {0.0, 33.0, 50.0, 100.0})
                QTest::addRow("%d tokens, depth %g %%", length, depth) << length << depth << 5 << true;
        QTest::newRow("32 digits") << 800 << 50.0 << 32 << true;
        QTest::newRow("64 digits without a frame") << 800 << 50.0 << 64 << false;
    }
    void promptsFitTheirLength() {
        QFETCH(int, length);
        QFETCH(double, depth);
        QFETCH(int, digits);
        QFETCH(bool, framed);
        const ChatFrame frame = framed ? model().frame : ChatFrame{};
        const PasskeyPrompt prompt = makePasskey(*model().tokenizer, length, depth, 1, digits, 7, {}, frame);
        const int total = static_cast<int>(prompt.context.size() + prompt.question.size());
        QVERIFY2(total <= length && total > length - 20, QByteArray::number(total));
        QCOMPARE(prompt.expected.size(), static_cast<std::size_t>(digits));

        const std::string needle = between(prompt, prompt.needleBegin, prompt.needleEnd);
        const std::size_t first = needle.find(prompt.expected);
        QVERIFY(first != std::string::npos && needle.find(prompt.expected, first + 1) != std::string::npos); // stated twice
        QCOMPARE(needle.back(), '.');
        const std::string rest =
            between(prompt, 0, prompt.needleBegin) + between(prompt, prompt.needleEnd, static_cast<Position>(prompt.context.size()));
        QVERIFY(rest.find(prompt.expected) == std::string::npos);

        const std::string question = model().tokenizer->decode(prompt.question);
        QCOMPARE(question.find(model().frame.userAfter) != std::string::npos, framed);
        QVERIFY(question.find(prompt.expected) == std::string::npos);
        const double share = 100.0 * prompt.needleBegin / static_cast<double>(prompt.context.size());
        if (length >= 4000) QVERIFY2(std::abs(share - depth) < 5, QByteArray::number(share));
    }

    void keysFollowSeedAndIndex() {
        const auto key = [](int index, std::uint64_t seed, double depth) {
            return makePasskey(*model().tokenizer, 300, depth, index, 5, seed, {}, model().frame).expected;
        };
        QCOMPARE(key(0, 1, 0), key(0, 1, 100));
        QVERIFY(key(0, 1, 0) != key(1, 1, 0));
        QVERIFY(key(0, 1, 0) != key(0, 2, 0));
        for (int index = 0; index < 50; ++index)
            QVERIFY(key(index, 3, 50).front() != '0');
    }

    void aHaystackOfTheUserIsUsed() {
        const std::string hay = "Ships came in. Did they leave again? They did!\nNobody <|im_end|> wrote it down";
        const PasskeyPrompt prompt = makePasskey(*model().tokenizer, 400, 50, 0, 5, 0, hay, model().frame);
        const std::string text = between(prompt, 0, static_cast<Position>(prompt.context.size()));
        QVERIFY(text.find("Nobody <|im_end|> wrote it down Ships came in.") != std::string::npos); // it starts again
        const auto ends = std::count(prompt.context.begin(), prompt.context.end(), model().tokenizer->eos());
        QCOMPARE(ends, 1); // the frame's own: what stands in a haystack is plain text
    }

    void impossibleRequestsAreRefused_data() {
        QTest::addColumn<int>("length");
        QTest::addColumn<double>("depth");
        QTest::addColumn<int>("digits");
        QTest::newRow("too short") << 40 << 50.0 << 5;
        QTest::newRow("negative") << -1 << 50.0 << 5;
        QTest::newRow("depth below 0") << 500 << -1.0 << 5;
        QTest::newRow("depth above 100") << 500 << 100.5 << 5;
        QTest::newRow("depth is no number") << 500 << std::nan("") << 5;
        QTest::newRow("no digits") << 500 << 50.0 << 0;
    }
    void impossibleRequestsAreRefused() {
        QFETCH(int, length);
        QFETCH(double, depth);
        QFETCH(int, digits);
        QVERIFY_THROWS_EXCEPTION(UsageError, makePasskey(*model().tokenizer, length, depth, 0, digits, 0, {}, model().frame));
    }

    void answersAreScored_data() {
        QTest::addColumn<QByteArray>("answer");
        QTest::addColumn<double>("exact");
        QTest::addColumn<double>("prefix");
        QTest::newRow("right") << QByteArray(" 71432.") << 1.0 << 1.0;
        QTest::newRow("right in a sentence") << QByteArray("It is 71432, as said.") << 1.0 << 1.0;
        QTest::newRow("last digit wrong") << QByteArray(" 71439.") << 0.0 << 0.8;
        QTest::newRow("first digit wrong") << QByteArray(" 81432") << 0.0 << 0.0;
        QTest::newRow("cut off") << QByteArray(" 714") << 0.0 << 0.6;
        QTest::newRow("too long") << QByteArray(" 714321") << 0.0 << 1.0;
        QTest::newRow("a shorter number first") << QByteArray("In line 7: 71432") << 1.0 << 0.2;
        QTest::newRow("right only at the second try") << QByteArray("11111 or 71432") << 0.0 << 0.0;
        QTest::newRow("no number") << QByteArray("I do not know.") << 0.0 << 0.0;
        QTest::newRow("nothing") << QByteArray() << 0.0 << 0.0;
    }
    void answersAreScored() {
        QFETCH(QByteArray, answer);
        QFETCH(double, exact);
        QFETCH(double, prefix);
        const PasskeyScore score = scorePasskey(answer.toStdString(), "71432");
        QCOMPARE(score.exact, exact);
        QCOMPARE(score.prefix, prefix);
    }
};

QTEST_APPLESS_MAIN(PasskeyTest)
#include "passkey_test.moc"
