// Drives the real program on the default model: results, exit codes and the one line on stderr.
#include <QtTest>

#include <QProcess>

#include <cmath>
#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

using nlohmann::json;

namespace {

struct Ran {
    int code = -1;
    std::string out, err;
};

const char* const Text =
    "The lighthouse keeper wrote down the weather every evening. On clear days he counted the ships that passed, and on foggy days he "
    "listened for their horns. When the winter came, the sea grew rough and the ships stayed in the harbour, so he read old letters by the "
    "fire. "
    "In spring the first boats returned, and he wrote their names into the book with a steady hand, one below the other, as his father had "
    "done.";

} // namespace

class CliTest : public QObject {
    Q_OBJECT

private Q_SLOTS:
    void initTestCase() {
        QVERIFY(m_folder.isValid());
        save("text.txt", Text);
        save("ids.json", "[504, 253, 1789, 28, 665, 436, 253]");
        save("short.json", ids(24));
        save("long.json", ids(96));
    }

    void theReadmeShowsTheRegistry() { // to mend it: put the output of the two commands between the README's marks
        std::ifstream file(KEEPSIGHT_RESOURCES "/../README.md");
        const std::string readme{std::istreambuf_iterator<char>(file), {}};
        for (const std::string what : {"policies", "quantizers"}) {
            const Ran ran = run({what.c_str(), "--markdown"});
            QCOMPARE(ran.code, 0);
            const std::string begin = "<!-- keepsight-cli " + what + " --markdown -->\n";
            const std::size_t at = readme.find(begin);
            QVERIFY2(at != std::string::npos, begin.c_str());
            const std::string shown = readme.substr(at + begin.size(), ran.out.size());
            QVERIFY2(shown == ran.out, ("the README's table is not what keepsight-cli " + what + " --markdown prints").c_str());
        }
    }

    void listsPolicies() {
        const Ran ran = run({"policies", "--json"});
        QCOMPARE(ran.code, 0);
        const json document = json::parse(ran.out);
        QVERIFY(document["policies"].size() >= 2);
        bool window = false;
        for (const json& policy : document["policies"]) {
            for (const char* key : {"id", "aliases", "kind", "summary", "paper", "parameters"})
                QVERIFY2(policy.contains(key), key);
            for (const json& parameter : policy["parameters"])
                for (const char* key : {"name", "type", "default", "low", "high", "help"})
                    QVERIFY2(parameter.contains(key), key);
            if (policy["id"] != "snapkv") continue;
            for (const json& parameter : policy["parameters"])
                if (parameter["name"] == "window") window = parameter["type"] == "integer" && parameter["default"].is_number_integer();
        }
        QVERIFY(window);
        const Ran text = run({"policies"});
        QCOMPARE(text.code, 0);
        QVERIFY(text.out.find("snapkv") != std::string::npos && text.out.find("window=") != std::string::npos);
    }

    void describesTheModel() {
        const Ran ran = run({"info", "--json"});
        QCOMPARE(ran.code, 0);
        const json document = json::parse(ran.out);
        QCOMPARE(document["schema"], json("keepsight.info/1"));
        QCOMPARE(document["config"]["layers"], json(30));
        QCOMPARE(document["model"]["sha256"].get<std::string>().size(), std::size_t(64));
        QCOMPARE(document["kv_bytes_per_token"], json(30 * 3 * 64 * 2 * 4));
        QVERIFY(run({"info"}).out.find("9 query, 3 KV, of 64") != std::string::npos);
    }

    void tokenizesAndComputesLogits() {
        const Ran tokens = run({"tokenize", "--text-file", path("text.txt")});
        QCOMPARE(tokens.code, 0);
        const json document = json::parse(tokens.out);
        std::string joined;
        for (const json& piece : document["pieces"])
            joined += piece.get<std::string>();
        QCOMPARE(joined, std::string(Text));
        QCOMPARE(document["ids"].size(), document["pieces"].size());
        const Ran chat = run({"tokenize", "--chat", "--text-file", path("text.txt")});
        QVERIFY(json::parse(chat.out)["ids"].size() > document["ids"].size());

        const Ran logits = run({"logits", "--ids-file", path("short.json"), "--greedy", "3"});
        QCOMPARE(logits.code, 0);
        const json result = json::parse(logits.out);
        QCOMPARE(result.size(), std::size_t(4));
        QCOMPARE(result["argmax"].size(), std::size_t(24));
        QCOMPARE(result["last_logits"].size(), std::size_t(49152));
        QCOMPARE(result["greedy"].size(), std::size_t(3));
        QCOMPARE(result["greedy"][0], result["argmax"][23]); // the first greedy token follows the last position
        QVERIFY(result["nll"].get<double>() > 0);
    }

    // Tiny random models in Hugging Face's own files, with what transformers computed from them (models/*/expected.json).
    void agreesWithTransformers_data() {
        QTest::addColumn<QString>("model");
        QTest::newRow("Llama 3 rope, BF16 shards") << "llama3_bf16_sharded";
        QTest::newRow("Qwen2 biases, F16, tied embeddings") << "qwen2_f16_tied";
    }
    void agreesWithTransformers() {
        QFETCH(QString, model);
        const std::string folder = std::string(KEEPSIGHT_TEST_DATA "/../app/cli/models/") + model.toStdString();
        std::ifstream in(folder + "/expected.json");
        const json expected = json::parse(in);
        save("model_ids.json", expected["ids"].dump());
        const Ran ran =
            run({"logits", "--dtype", "fp32", "--device", "cpu", "--model", folder, "--ids-file", path("model_ids.json"), "--greedy", "5"});
        QVERIFY2(ran.code == 0, ran.err.c_str());
        const json found = json::parse(ran.out);
        QVERIFY(std::abs(found["nll"].get<double>() - expected["nll"].get<double>()) < 1e-5);
        QCOMPARE(found["argmax"], expected["argmax"]);
        QCOMPARE(found["greedy"], expected["greedy"]);
        QCOMPARE(found["last_logits"].size(), expected["last_logits"].size());
        for (std::size_t i = 0; i < found["last_logits"].size(); ++i)
            QVERIFY(std::abs(found["last_logits"][i].get<double>() - expected["last_logits"][i].get<double>()) < 1e-4);
    }

    void generatesAndDumpsWhatIsRetained() {
        const Ran ran = run({"generate", "--ids-file", path("long.json"), "--max-new", "4", "--ignore-eos", "--policy", "snapkv:window=8",
                             "--compression-ratio", "0.5", "--dump-retained", path("kept.json"), "--session", path("run.keep")});
        QVERIFY2(ran.code == 0, ran.err.c_str());
        QVERIFY(ran.out.size() > 1 && ran.out.ends_with('\n'));
        const json kept = json::parse(load("kept.json"));
        const json& after = kept["after_prefill"]["layers"];
        QCOMPARE(after.size(), std::size_t(30));
        QCOMPARE(after[0]["heads"].size(), std::size_t(3));
        for (const json& head : after[7]["heads"]) {
            QCOMPARE(head.size(), std::size_t(48));
            QCOMPARE(head.back(), json(95)); // the window is kept
            QVERIFY(std::is_sorted(head.begin(), head.end()));
        }
        QVERIFY(kept["final"]["layers"][7]["heads"][0].size() > 48);

        const Ran stopped = run(
            {"generate", "--ids-file", path("long.json"), "--max-new", "0", "--budget", "20", "--policy", "knorm", "--dump-retained", "-"});
        QCOMPARE(stopped.code, 0);
        QCOMPARE(json::parse(stopped.out)["after_prefill"]["layers"][29]["heads"][2].size(), std::size_t(20));
    }

    void replaysAndExportsASession() {
        if (!QFile::exists(QString::fromStdString(path("run.keep")))) generatesAndDumpsWhatIsRetained();
        const Ran replay = run({"replay", path("run.keep")}, "KEEPSIGHT_MODEL=/nowhere");
        QVERIFY2(replay.code == 0, replay.err.c_str());
        QVERIFY(replay.out.find("snapkv:window=8@0.5") != std::string::npos);
        QVERIFY(replay.out.find("generate, complete") != std::string::npos);
        QCOMPARE(run({"replay", path("run.keep"), "--dump-retained", path("again.json")}).code, 0);
        QCOMPARE(load("again.json"), load("kept.json")); // a replay holds what the run held
        const Ran rows = run({"replay", path("run.keep"), "--json", "-"});
        QCOMPARE(json::parse(rows.out)["rows"][0]["params"]["window"], json(8));

        const Ran csv = run({"export", path("run.keep"), "--figure", "memory"});
        QVERIFY2(csv.code == 0, csv.err.c_str());
        QVERIFY(std::count(csv.out.begin(), csv.out.end(), '\n') > 4);
        QCOMPARE(run({"export", path("run.keep"), "--figure", "retained", "--layer", "3", "--head", "1", "--out", path("r.npy")}).code, 0);
        QCOMPARE(load("r.npy").substr(1, 5), std::string("NUMPY"));
        const Ran all = run({"export", path("run.keep"), "--out-dir", path("pictures"), "--format", "json"});
        QVERIFY2(all.code == 0, all.err.c_str());
        QVERIFY(std::count(all.out.begin(), all.out.end(), '\n') >= 4);
        QVERIFY(json::parse(load("pictures/results.json")).is_array());
    }

    void scoresLanesCrossedWithBudgets() {
        const Ran ran = run({"score", "--ids-file", path("long.json"), "--prefix-ratio", "0.9", "--policy", "full", "--policy", "knorm",
                             "--compression-ratio", "0.3,0.6", "--json", path("score.json"), "--csv", path("score.csv")});
        QVERIFY2(ran.code == 0, ran.err.c_str());
        const json document = json::parse(load("score.json"));
        QCOMPARE(document["schema"], json("keepsight.score/1"));
        const json& rows = document["rows"];
        QCOMPARE(rows.size(), std::size_t(4)); // full stands for both ratios, and ran once
        QCOMPARE(rows[0]["policy"], json("full"));
        QCOMPARE(rows[1]["compression_ratio"], json(0.6));
        QCOMPARE(rows[0]["ppl"], rows[1]["ppl"]);
        QCOMPARE(rows[0]["tpot_ms"], rows[1]["tpot_ms"]);
        QCOMPARE(rows[2]["policy"], json("knorm"));
        QVERIFY(rows[3]["kv_bytes"] < rows[2]["kv_bytes"] && rows[2]["kv_bytes"] < rows[0]["kv_bytes"]);
        QCOMPARE(rows[0]["n_tokens"], json(96 - 86));
        QCOMPARE(rows[3]["kept_per_layer"].size(), std::size_t(30));
        QCOMPARE(rows[3]["kept_per_layer"][0].size(), std::size_t(3));
        QVERIFY(rows[0]["tpot_ms"].get<double>() > 0);
        const std::string csv = load("score.csv");
        QCOMPARE(std::count(csv.begin(), csv.end(), '\n'), 5);
        QVERIFY(ran.out.find("knorm") != std::string::npos);
    }

    void measuresPerplexityOfLanes() {
        const Ran ran = run({"ppl", "--ids-file", path("long.json"), "--max-length", "48", "--lane", "full", "--lane", "knorm@0.5",
                             "--lane", "streaming_llm@b12", "--json", "-"});
        QVERIFY2(ran.code == 0, ran.err.c_str());
        const json document = json::parse(ran.out);
        QCOMPARE(document["schema"], json("keepsight.ppl/1"));
        QCOMPARE(document["model"]["arch"], json("llama"));
        const json& rows = document["rows"];
        QCOMPARE(rows.size(), std::size_t(3));
        QCOMPARE(rows[0]["ppl_delta"], json(0.0));
        QCOMPARE(rows[0]["per_window"].size(), std::size_t(2));
        QCOMPARE(rows[0]["n_tokens"], json(48));
        QCOMPARE(rows[2]["budget"], json(12));
        QVERIFY(rows[2]["compression_ratio"].is_null());
        QCOMPARE(rows[2]["kept_per_layer"][0][0], json(12));
    }

    void packsTheCache() {
        const Ran ran = run({"ppl", "--ids-file", path("long.json"), "--max-length", "96", "--policy", "full", "--policy", "snapkv:window=8", "--compression-ratio", "0.5",
                             "--quant", "none", "--quant", "kivi:bits=8,group=16,residual=16", "--quant", "hqq_rtn", "--json", "-"});
        QVERIFY2(ran.code == 0, ran.err.c_str());
        const json rows = json::parse(ran.out)["rows"];
        QCOMPARE(rows.size(), std::size_t(6));
        QCOMPARE(rows[0]["quant"], json("none"));
        QCOMPARE(rows[1]["quant"], json("kivi:bits=8,group=16,residual=16"));
        QCOMPARE(rows[0]["bits_per_value"], json(32.0));
        QCOMPARE(rows[2]["bits_per_value"], json(4.5)); // the whole prefix: codes of 4 bits, scale and zero of 64 values
        QVERIFY(rows[5]["kv_bytes"] < rows[4]["kv_bytes"] && rows[4]["kv_bytes"] < rows[3]["kv_bytes"]);
        QCOMPARE(rows[5]["kept_per_layer"], rows[3]["kept_per_layer"]); // chosen before they are packed
        QVERIFY(std::abs(rows[1]["nll"].get<double>() - rows[0]["nll"].get<double>()) < 0.05);
    }

    void listsQuantizers() {
        const json list = json::parse(run({"quantizers", "--json"}).out)["quantizers"];
        QCOMPARE(list[0]["id"], json("none"));
        QVERIFY(std::any_of(list.begin(), list.end(), [](const json& q) { return q["id"] == "kvquant"; }));
    }

    void explainsATokensFate() {
        const Ran ran = run({"generate", "--ids-file", path("long.json"), "--max-new", "4", "--policy", "h2o", "--budget", "40", "--explain", "20", "--json", "-"});
        QVERIFY2(ran.code == 0, ran.err.c_str());
        const json rows = json::parse(ran.out)["explanations"];
        QVERIFY(rows.size() >= 90); // after the prefill in every layer and head, and later where it was still held
        bool dropped = false, kept = false;
        for (const json& row : rows) {
            QCOMPARE(row["position"], json(20));
            const bool stays = row["kept"];
            (stays ? kept : dropped) = true;
            QCOMPARE(stays, row["rank"].get<int>() <= row["slots"].get<int>());
            QCOMPARE(stays, row["score"].get<double>() >= row["cutoff"].get<double>());
            QVERIFY(row["last_kept"].get<int>() >= 0);
            QCOMPARE(row["budget_needed"].get<int>() <= 40, stays);
        }
        QVERIFY(kept && dropped);
        const Ran text = run({"generate", "--ids-file", path("long.json"), "--max-new", "0", "--policy", "snapkv:window=8", "--budget", "40", "--explain", "95"});
        QVERIFY2(text.out.find("recent") != std::string::npos, text.out.c_str()); // the window is protected
    }

    void runsASuite() {
        const Ran ran = run({"suite", "--ids-file", path("long.json"), "--max-length", "32", "--policy", "full", "--policy", "knorm", "--compression-ratio", "0.5", "--quant", "none",
                             "--quant", "hqq_rtn", "--ctx", "32", "--new", "3", "--warmup", "0", "--repeats", "1", "--session", path("suite.keep"), "--json", "-"});
        QVERIFY2(ran.code == 0, ran.err.c_str());
        const json rows = json::parse(ran.out)["rows"];
        QCOMPARE(rows.size(), std::size_t(4));
        for (const json& row : rows) QVERIFY(row["ppl"].get<double>() > 0 && row["tpot_ms"].get<double>() > 0 && row["n_tokens"] == 48);
        QCOMPARE(rows[0]["ppl_delta"], json(0.0));
        const Ran replay = run({"replay", path("suite.keep"), "--json", "-"});
        QCOMPARE(json::parse(replay.out)["rows"].size(), std::size_t(4)); // without the windows, which are for going on
    }

    void benchesAndHidesNeedles() {
        const Ran bench = run({"bench", "--ctx", "32", "--new", "3", "--warmup", "0", "--repeats", "1", "--json", "-"});
        QVERIFY2(bench.code == 0, bench.err.c_str());
        QVERIFY(json::parse(bench.out)["rows"][0]["tpot_ms"].get<double>() > 0);
        const Ran needle = run({"needle", "--lengths", "160:160:1", "--depths", "0,100", "--lane", "full", "--json", "-"});
        QVERIFY2(needle.code == 0, needle.err.c_str());
        const json rows = json::parse(needle.out)["rows"];
        QCOMPARE(rows.size(), std::size_t(2));
        for (const char* key : {"policy", "params", "compression_ratio", "budget", "length", "depth", "key_index", "score", "expected",
                                "answer", "kept_needle_share"})
            QVERIFY2(rows[0].contains(key), key);
        QCOMPARE(rows[1]["depth"], json(100.0));
    }

    void refuses_data() {
        QTest::addColumn<QStringList>("arguments");
        QTest::addColumn<int>("code");
        QTest::addColumn<QString>("sentence");
        const auto row = [](const char* name, std::vector<std::string> arguments, int code, const char* sentence) {
            QStringList list;
            for (const auto& argument : arguments)
                list << QString::fromStdString(argument);
            QTest::newRow(name) << list << code << QString::fromUtf8(sentence);
        };
        save("nul.txt", std::string("a\0b", 3));
        save("latin1.txt", "caf\xe9");
        save("empty.txt", "");
        save("bad.json", "[1, \"x\"]");
        save("far.json", "[1, 60000]");
        save("not.keep", "hello");
        save("model.bin", "\x80\x02}q");
        const std::string text = path("text.txt"), few = path("short.json");
        row("no command", {}, 2, "--help");
        row("unknown command", {"fly"}, 2, "--help");
        row("unknown option", {"info", "--fly"}, 2, "keepsight-cli info --help");
        row("unknown policy", {"score", "--text-file", text, "--policy", "nosuch"}, 2, "nosuch");
        row("unknown parameter", {"score", "--text-file", text, "--policy", "snapkv:wnidow=3"}, 2, "wnidow");
        row("parameter out of range", {"score", "--text-file", text, "--policy", "snapkv:window=-1"}, 2, "window");
        row("ratio 1", {"score", "--text-file", text, "--policy", "knorm", "--compression-ratio", "1"}, 2, "below 1");
        row("ratio negative", {"score", "--text-file", text, "--policy", "knorm", "--compression-ratio", "-0.5"}, 2, "at least 0");
        row("budget 0", {"score", "--text-file", text, "--policy", "knorm", "--budget", "0"}, 2, "at least 1 token");
        row("ratio and budget", {"score", "--text-file", text, "--compression-ratio", "0.5", "--budget", "9"}, 2, "excludes");
        row("lane and policy", {"score", "--text-file", text, "--lane", "full", "--policy", "full"}, 2, "excludes");
        row("lane without number", {"score", "--text-file", text, "--lane", "knorm@half"}, 2, "POLICY@RATIO");
        row("unknown quantizer", {"score", "--text-file", text, "--quant", "zip"}, 2, "expected one of: none, kivi");
        row("quantizer's parameter", {"score", "--text-file", text, "--quant", "kivi:bits=5"}, 2, "expects one of 2, 4, 8");
        row("quantizer that does not fit", {"score", "--text-file", text, "--lane", "layerquant@0.5~kivi"}, 2, "choose the quantizer layerquant with it, not kivi");
        row("equal memory without a budget", {"ppl", "--text-file", text, "--quant", "kivi:equal_memory=on"}, 2, "policy full has no budget");
        row("lane and quantizer", {"score", "--text-file", text, "--lane", "full", "--quant", "kivi"}, 2, "excludes");
        row("position to explain", {"generate", "--prompt-file", text, "--explain", "-1"}, 2, "--explain");
        row("protocol", {"ppl", "--text-file", text, "--protocol", "stream"}, 2, "available: suffix");
        row("style", {"needle", "--style", "essay"}, 2, "available: passkey");
        row("lengths", {"needle", "--lengths", "9:1:2"}, 2, "A ≤ B");
        row("lengths text", {"needle", "--lengths", "many"}, 2, "--lengths: expected");
        row("depths", {"needle", "--depths", "0,200"}, 2, "from 0 to 100");
        row("share that is no number", {"score", "--text-file", text, "--prefix-ratio", "nan"}, 2, "expected 0 to 1, found 'nan'");
        row("temperature that is no number", {"generate", "--prompt-file", text, "--temperature", "nan"}, 2, "found 'nan'");
        row("negative seed", {"score", "--text-file", text, "--seed", "-1"}, 2, "--seed");
        row("dtype", {"info", "--dtype", "int3"}, 2, "int3");
        row("device", {"info", "--device", "abacus"}, 2, "abacus");
        row("text and ids", {"score", "--text-file", text, "--ids-file", few}, 2, "excludes");
        row("no text", {"score"}, 2, "a text is needed");
        row("both to stdout", {"score", "--ids-file", few, "--json", "-", "--csv", "-"}, 2, "cannot both");
        row("NUL byte", {"score", "--text-file", path("nul.txt")}, 1, "NUL byte at byte 1");
        row("not UTF-8", {"score", "--text-file", path("latin1.txt")}, 1, "not valid UTF-8");
        row("empty text", {"score", "--text-file", path("empty.txt")}, 1, "is empty");
        row("absent text", {"score", "--text-file", path("absent.txt")}, 1, "No such file");
        row("folder as text", {"score", "--text-file", path("")}, 1, "is a directory");
        row("ids with text", {"logits", "--ids-file", path("bad.json")}, 1, "item 1 should be a token id");
        row("id out of range", {"logits", "--ids-file", path("far.json")}, 1, "60000 at index 1");
        row("absent model", {"info", "--model", path("absent.gguf")}, 1, "does not exist");
        row("pickle", {"info", "--model", path("model.bin")}, 1, "convert it to safetensors");
        row("text as model", {"info", "--model", text}, 1, "is no model");
        row("not a session", {"replay", path("not.keep")}, 1, "not.keep");
        row("absent session", {"export", path("absent.keep"), "--figure", "ppl"}, 1, "absent.keep");
        row("no figure", {"export", path("not.keep")}, 2, "--figure");
        row("no output folder", {"score", "--ids-file", few, "--json", path("no/such/x.json")}, 1, "does not exist");
        row("session into a device", {"score", "--ids-file", few, "--session", "/dev/null"}, 1, "no regular file");
        row("results into a full device", {"score", "--ids-file", few, "--json", "/dev/full"}, 1, "cannot write to '/dev/full'");
        row("text too short", {"ppl", "--ids-file", few, "--max-length", "64"}, 1, "at least 64 tokens");
    }
    void refuses() {
        QFETCH(QStringList, arguments);
        QFETCH(int, code);
        QFETCH(QString, sentence);
        std::vector<std::string> list;
        for (const QString& argument : arguments)
            list.push_back(argument.toStdString());
        const Ran ran = run(list);
        QVERIFY2(ran.code == code, (std::to_string(ran.code) + ": " + ran.err).c_str());
        QVERIFY2(QString::fromStdString(ran.err).contains(sentence), ran.err.c_str());
        QCOMPARE(std::count(ran.err.begin(), ran.err.end(), '\n'), 1); // one line says it
        QVERIFY2(ran.err.starts_with("keepsight-cli: "), ran.err.c_str());
        QVERIFY(ran.out.empty());
    }

    void writesIntoPipes() {
        const Ran ran = run({"policies", "--json", "/dev/stdout"});
        QCOMPARE(ran.code, 0);
        QVERIFY(json::parse(ran.out).contains("policies"));
    }

    // A redirected output is written on where it stands, not replaced; nor is a name for it, even if the file has none any more.
    void writesOnRedirectedOutput() {
        QProcess shell;
        shell.setWorkingDirectory(m_folder.path());
        shell.start("/bin/sh", {"-c", QString("(echo before; %1 policies --json /dev/stdout; echo after) > all.txt; ln -s /proc/self/fd/1 link; exec > gone; rm gone; "
                                              "%1 policies --json link; %1 policies --json /dev/stdout; test -L link && test -L /dev/stdout")
                                          .arg(KEEPSIGHT_BUILD "/bin/keepsight-cli")});
        QVERIFY(shell.waitForFinished(60000));
        QCOMPARE(shell.exitCode(), 0);
        const std::string all = load("all.txt");
        QVERIFY(all.starts_with("before\n{") && all.ends_with("}\nafter\n"));
    }

    void helpAndVersionSucceed() {
        QVERIFY(run({"--version"}).out.find("keepsight-cli 0.") == 0);
        const Ran help = run({"ppl", "--help"});
        QCOMPARE(help.code, 0);
        QVERIFY(help.out.find("--compression-ratio") != std::string::npos);
    }

    void interruptKeepsWhatIsDone() {
        QProcess process;
        start(process, {"score", "--text-file", path("text.txt"), "--prefix-ratio", "0.02", "--session", path("cut.keep"), "--json",
                        path("cut.json")});
        QVERIFY(process.waitForStarted());
        QTRY_VERIFY_WITH_TIMEOUT(QFile::exists(QString::fromStdString(path("cut.keep"))), 60000); // the run has begun
        ::kill(static_cast<pid_t>(process.processId()), SIGINT);
        QVERIFY(process.waitForFinished(60000));
        QCOMPARE(process.exitStatus(), QProcess::NormalExit);
        QCOMPARE(process.exitCode(), 130);
        const json document = json::parse(load("cut.json"));
        QCOMPARE(document["cancelled"], json(true));
        const Ran replay = run({"replay", path("cut.keep")});
        QVERIFY2(replay.code == 0, replay.err.c_str());
        QVERIFY(replay.out.find("score, cancelled") != std::string::npos);
    }

private:
    std::string path(const std::string& name) const { return m_folder.filePath(QString::fromStdString(name)).toStdString(); }
    void save(const std::string& name, const std::string& bytes) const { std::ofstream(path(name), std::ios::binary) << bytes; }
    std::string load(const std::string& name) const {
        std::ifstream in(path(name), std::ios::binary);
        return {std::istreambuf_iterator<char>(in), {}};
    }
    static std::string ids(int count) { // plain words of the default model's vocabulary
        json list = json::array();
        for (int i = 0; i < count; ++i)
            list.push_back(300 + (i * 37) % 400);
        return list.dump();
    }
    void start(QProcess& process, const std::vector<std::string>& arguments, const char* extra = nullptr) const {
        QStringList list;
        for (const auto& argument : arguments)
            list << QString::fromStdString(argument);
        QProcessEnvironment environment = QProcessEnvironment::systemEnvironment();
        environment.insert("XDG_CACHE_HOME", m_folder.filePath("cache"));
        if (extra) {
            const QString pair = QString::fromUtf8(extra);
            environment.insert(pair.section('=', 0, 0), pair.section('=', 1));
        }
        process.setProcessEnvironment(environment);
        process.start(KEEPSIGHT_BUILD "/bin/keepsight-cli", list);
    }
    Ran run(const std::vector<std::string>& arguments, const char* extra = nullptr) const {
        QProcess process;
        start(process, arguments, extra);
        if (!process.waitForFinished(120000)) {
            process.kill();
            process.waitForFinished();
            return {-1, {}, "timed out"};
        }
        return {process.exitStatus() == QProcess::NormalExit ? process.exitCode() : -2, process.readAllStandardOutput().toStdString(),
                process.readAllStandardError().toStdString()};
    }

    QTemporaryDir m_folder;
};

QTEST_GUILESS_MAIN(CliTest)
#include "cli_test.moc"
