// Character classes and NFC over every code point, against the Hugging Face library (tests/golden/make_unicode_tables.py); UTF-8.
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/unicode.h"

#include <QtTest>

#include <nlohmann/json.hpp>

#include <fstream>

using namespace keepsight;
using Json = nlohmann::json;

namespace {

Json golden() {
    std::ifstream file(std::string(KEEPSIGHT_GOLDEN) + "/tokenizer_unicode.json", std::ios::binary);
    return Json::parse(file);
}
bool surrogate(char32_t c) { return c >= 0xD800 && c < 0xE000; }

std::string utf8(const Json& row, std::size_t from) {
    std::string text;
    for (std::size_t i = from; i < row.size(); ++i)
        appendUtf8(text, row[i].get<char32_t>());
    return text;
}

} // namespace

class UnicodeTest : public QObject {
    Q_OBJECT
private Q_SLOTS:
    void classesOfAllCodePoints_data() {
        QTest::addColumn<QString>("name");
        QTest::addColumn<int>("bit");
        QTest::newRow("letters") << "letter" << int(Letter);
        QTest::newRow("numbers") << "number" << int(Number);
        QTest::newRow("white space") << "space" << int(Space);
        QTest::newRow("digits") << "numeric" << int(Numeric);
        QTest::newRow("words") << "word" << int(WordChar);
        QTest::newRow("blanks") << "blank" << int(Blank);
    }
    void classesOfAllCodePoints() {
        QFETCH(QString, name);
        QFETCH(int, bit);
        std::vector<bool> expected(0x110000, false);
        const auto ranges = golden()[name.toStdString()].get<std::vector<char32_t>>();
        for (std::size_t i = 0; i + 1 < ranges.size(); i += 2)
            for (char32_t c = ranges[i]; c <= ranges[i + 1]; ++c)
                expected[c] = true;
        for (char32_t c = 0; c < 0x110000; ++c)
            if (!surrogate(c)) QVERIFY2(((classOf(c) & bit) != 0) == expected[c], QByteArray::number(c, 16));
        QCOMPARE(classOf(0x110000), std::uint8_t(0));
    }

    void nfcOfAllCodePoints() {
        const Json data = golden();
        std::vector<std::string> expected(0x110000);
        for (const Json& row : data["nfc"])
            expected[row[0].get<char32_t>()] = utf8(row, 1);
        for (char32_t c = 0; c < 0x110000; ++c) {
            if (surrogate(c)) continue;
            std::string text;
            appendUtf8(text, c);
            QVERIFY2(toNfc(text) == (expected[c].empty() ? text : expected[c]), QByteArray::number(c, 16));
        }
        QVERIFY(data["compose"].size() > 900);
        for (const Json& row : data["compose"])
            QVERIFY2(toNfc(utf8(row, 1)) == utf8(row.get<Json>(), 0).substr(0, codePointAt(utf8(row, 0), 0).length), row.dump().c_str());
    }

    void nfcOrdersAndBlocks_data() {
        QTest::addColumn<QString>("text");
        QTest::addColumn<QString>("expected");
        QTest::newRow("marks in the wrong order") << QString("s\u0307\u0323") << QString("\u1E69");
        QTest::newRow("a mark between blocks") << QString("a\u0315\u0305\u0301") << QString("a\u0305\u0301\u0315");
        QTest::newRow("Hangul parts") << QString("\u1112\u1161\u11AB") << QString("\uD55C");
        QTest::newRow("Hangul syllable and tail") << QString("\uD558\u11AB") << QString("\uD55C");
        QTest::newRow("lone marks stay") << QString("\u0301\u0301") << QString("\u0301\u0301");
    }
    void nfcOrdersAndBlocks() {
        QFETCH(QString, text);
        QFETCH(QString, expected);
        QCOMPARE(QString::fromStdString(toNfc(text.toStdString())), expected);
    }

    void utf8IsCheckedStrictly_data() {
        QTest::addColumn<QByteArray>("bytes");
        QTest::addColumn<bool>("valid");
        QTest::newRow("empty") << QByteArray() << true;
        QTest::newRow("NUL") << QByteArray("\0", 1) << true;
        QTest::newRow("all lengths") << QByteArray("a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x8C\x8A") << true;
        QTest::newRow("last code point") << QByteArray("\xF4\x8F\xBF\xBF") << true;
        QTest::newRow("above the last") << QByteArray("\xF4\x90\x80\x80") << false;
        QTest::newRow("overlong in two bytes") << QByteArray("\xC0\xAF") << false;
        QTest::newRow("overlong in three") << QByteArray("\xE0\x80\xAF") << false;
        QTest::newRow("overlong in four") << QByteArray("\xF0\x8F\xBF\xBF") << false;
        QTest::newRow("surrogate") << QByteArray("\xED\xA0\x80") << false;
        QTest::newRow("cut off") << QByteArray("\xE2\x82") << false;
        QTest::newRow("stray continuation") << QByteArray("\x80") << false;
        QTest::newRow("lead byte without end") << QByteArray("\xC3(") << false;
        QTest::newRow("never a byte of UTF-8") << QByteArray("\xFF") << false;
    }
    void utf8IsCheckedStrictly() {
        QFETCH(QByteArray, bytes);
        QFETCH(bool, valid);
        QCOMPARE(isValidUtf8(bytes.toStdString()), valid);
    }

    void streamsHoldBackUnfinishedCharacters_data() {
        QTest::addColumn<QList<QByteArray>>("pushed");
        QTest::addColumn<QList<QByteArray>>("shown"); // last: finish()
        const QByteArray bad = "\xEF\xBF\xBD";
        QTest::newRow("emoji byte by byte") << QList<QByteArray>{"\xF0", "\x9F", "\x8C", "\x8A"}
                                            << QList<QByteArray>{"", "", "", "\xF0\x9F\x8C\x8A", ""};
        QTest::newRow("text passes at once") << QList<QByteArray>{"abc", "\xC3", "\xA9x"} << QList<QByteArray>{"abc", "", "\xC3\xA9x", ""};
        QTest::newRow("proved broken by the next") << QList<QByteArray>{"\xE2\x82", "x"} << QList<QByteArray>{"", bad + "x", ""};
        QTest::newRow("never finished") << QList<QByteArray>{"a\xE2\x82"} << QList<QByteArray>{"a", bad};
        QTest::newRow("impossible second byte") << QList<QByteArray>{"\xE0\x80"} << QList<QByteArray>{bad + bad, ""};
        QTest::newRow("surrogate") << QList<QByteArray>{"\xED\xA0\x80."} << QList<QByteArray>{bad + bad + bad + ".", ""};
        QTest::newRow("two starts") << QList<QByteArray>{"\xF0\x9F\xF0", "\x9F\x8C\x8A"} << QList<QByteArray>{bad, "\xF0\x9F\x8C\x8A", ""};
    }
    void streamsHoldBackUnfinishedCharacters() {
        QFETCH(QList<QByteArray>, pushed);
        QFETCH(QList<QByteArray>, shown);
        Utf8Stream stream;
        for (int i = 0; i < pushed.size(); ++i)
            QCOMPARE(QByteArray::fromStdString(stream.push(pushed[i].toStdString())), shown[i]);
        QCOMPARE(QByteArray::fromStdString(stream.finish()), shown.last());
    }

    void streamsAlwaysEmitValidUtf8() {
        quint32 state = 7;
        for (int round = 0; round < 20000; ++round) {
            Utf8Stream stream;
            std::string out;
            for (int i = 0; i < 6; ++i) {
                state = state * 1664525 + 1013904223;
                constexpr unsigned char interesting[] = {0x41, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0,
                                                         0xC2, 0xE0, 0xE2, 0xED, 0xF0, 0xF1, 0xF4, 0xFF};
                out += stream.push(std::string(1, static_cast<char>(interesting[state >> 28])));
                QVERIFY(isValidUtf8(out));
            }
            out += stream.finish();
            QVERIFY(isValidUtf8(out) && !out.empty());
        }
    }
};

QTEST_APPLESS_MAIN(UnicodeTest)
#include "unicode_test.moc"
