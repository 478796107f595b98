"""Shared by the make_*.py scripts: the peers' model and tokenizer, our text, and compact JSON."""
import argparse
import json
import os
import pathlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
import torch
import transformers

FOLDER = pathlib.Path(__file__).parent
TEXT = FOLDER / "harbour.txt"


def arguments(description, output):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", required=True, help="the default model, which app/run.sh leaves in build/models")
    parser.add_argument("--out", default=str(FOLDER / output))
    return parser.parse_args()


def source(gguf):
    return os.path.dirname(os.path.abspath(gguf)), {"gguf_file": os.path.basename(gguf)}


def load(gguf, dtype=torch.float32, attention="sdpa"):
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder, extra = source(gguf)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention, **extra).eval()


def tokens(gguf, text=TEXT):
    folder, extra = source(gguf)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **extra)
    return tokenizer(pathlib.Path(text).read_text(encoding="utf-8"), return_tensors="pt", add_special_tokens=False).input_ids[0]


def meanNll(logits, ids):
    """logits [T, vocab] of ids [T]: mean loss of ids[1:]."""
    return torch.nn.functional.cross_entropy(logits[:-1].double(), ids[1:]).item()


def versions():
    return {"torch": torch.__version__, "transformers": transformers.__version__}


def write(path, data):
    pathlib.Path(path).write_text(json.dumps(data, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{path}: {os.path.getsize(path)} bytes")
