"""Shared by the compare_*.py scripts: finds our CLI, runs it, and summarises samples."""
import json
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests/golden"))
MODEL = ROOT / "build/models/SmolLM2-135M-Instruct.Q4_1.gguf"


def addArguments(parser):
    parser.add_argument("--gguf", default=str(MODEL))
    parser.add_argument("--cli", default=str(ROOT / "build/bin/keepsight-cli"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="also write the numbers here")
    parser.add_argument("--peer-only", action="store_true", help="leave our side out")


def runCli(a, dtype, *command):
    """Runs one command of ours and returns its JSON."""
    line = [a.cli, "--device", "cpu", "--dtype", dtype, "--threads", str(a.threads), *command, "--model", a.gguf, "--json", "-"]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, line))} ended with {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def benchCli(a, dtype, contexts):
    """Tokens per second of our prefill and decode behind each context."""
    result = {}
    for context in contexts:
        row = runCli(a, dtype, "bench", "--ctx", str(context), "--new", str(a.new), "--warmup", "1", "--repeats", "1")["rows"][0]
        result[f"prefill@{context}"] = context / row["prefill_s"]
        result[f"decode@{context}"] = 1000 / row["tpot_ms"]
    return result


def inTurns(sides, rounds):
    """sides: (name, measure) pairs, run in alternating order. Yields (side, measured name, value)."""
    for turn in range(rounds):
        for side, measure in sides if turn % 2 == 0 else reversed(sides):
            for name, value in measure().items():
                yield side, name, value
            time.sleep(0.3)  # idle threads go to sleep before the other side starts


def median(samples):
    return statistics.median(samples)


def spread(samples):
    """Half the interquartile range, in per cent of the median."""
    if len(samples) < 2:
        return 0.0
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return 50 * (high - low) / median(samples)


def machine():
    name = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown")
    return name


def report(a, data):
    if a.json:
        pathlib.Path(a.json).write_text(json.dumps(data, indent=1) + "\n")
        print("written:", a.json)
