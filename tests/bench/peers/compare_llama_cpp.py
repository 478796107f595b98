"""Decode and prefill speed on the CPU: llama.cpp and keepsight-cli bench on the same GGUF file, alternating in one run.

    python tests/bench/peers/compare_llama_cpp.py [--rounds 5] [--dtype fp32 bf16] [--peer-type stored|bf16|f32] [--json F]

Needs llama-cpp-python in this Python (pip install llama-cpp-python builds llama.cpp) and a built keepsight-cli; nothing else should run on the machine.
llama.cpp multiplies with the weights as they are stored in the file (Q4_1 rows, activations rounded to 8 bits); we unpack the same rows to fp32 or bf16
products, so ours is the more exact computation. --peer-type bf16 gives llama.cpp the same weights written out as bf16 (Python package gguf). Prefill is one batch of 512 tokens; decode is greedy steps behind 512 and 2048 tokens. Tokens per second.
"""
import argparse
import pathlib
import tempfile
import time

import llama_cpp

from side_by_side import addArguments, benchCli, inTurns, machine, median, report, spread

CONTEXTS = [512, 2048]


def written(source, kind, folder):
    """The same model with its matrices as `kind`, everything else as it was."""
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(source)
    to = gguf.GGMLQuantizationType[kind.upper()]
    path = pathlib.Path(folder) / f"{pathlib.Path(source).stem}.{kind}.gguf"
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub)
    for tensor in reader.tensors:
        values = np.ascontiguousarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if len(tensor.shape) > 1 and kind != "f32":
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, to), raw_dtype=to)
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


class Peer:
    def __init__(self, a, file):
        self.new = a.new
        self.model = llama_cpp.Llama(file, n_ctx=CONTEXTS[-1] + a.new + 8, n_batch=512, n_threads=a.threads, n_threads_batch=a.threads, verbose=False)
        self.ids = [100 + i * 7919 % 40000 for i in range(CONTEXTS[-1])]

    def measure(self):
        result = {}
        for context in CONTEXTS:
            self.model.reset()
            start = time.perf_counter()
            self.model.eval(self.ids[:context])
            result[f"prefill@{context}"] = context / (time.perf_counter() - start)
            token = 100
            for i in range(self.new + 2):
                if i == 2:  # warm
                    start = time.perf_counter()
                self.model.eval([token])
                token = self.model.sample(temp=0.0)
            result[f"decode@{context}"] = self.new / (time.perf_counter() - start)
        return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    addArguments(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=32, help="decode steps per measurement")
    parser.add_argument("--dtype", nargs="*", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--peer-type", default="stored", choices=["stored", "bf16", "f32"], help="what llama.cpp's matrices are written as")
    a = parser.parse_args()
    folder = tempfile.TemporaryDirectory()
    peer, samples = Peer(a, a.gguf if a.peer_type == "stored" else written(a.gguf, a.peer_type, folder.name)), {}
    sides = [("llama.cpp", peer.measure)] + ([] if a.peer_only else [(f"keepsight {d}", lambda d=d: benchCli(a, d, CONTEXTS)) for d in a.dtype])
    for side, name, value in inTurns(sides, a.rounds):
        samples.setdefault(name, {}).setdefault(side, []).append(value)
    print(f"{machine()}, {a.threads} threads, median of {a.rounds}, tokens/s (± half the interquartile range), llama-cpp-python {llama_cpp.__version__}, its weights {a.peer_type}")
    rows = []
    for name, sides in samples.items():
        base = median(sides["llama.cpp"])
        for side, values in sides.items():
            print(f"{name:13} {side:16} {median(values):9.1f} ±{spread(values):4.1f} %  {median(values) / base:5.2f} ×")
            rows.append({"measure": name, "side": side, "tokens_per_s": values, "ratio": median(values) / base})
    report(a, {"schema": "keepsight.compare_llama_cpp/1", "machine": machine(), "threads": a.threads, "rounds": a.rounds, "peer_type": a.peer_type, "rows": rows})


main()
