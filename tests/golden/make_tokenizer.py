#!/usr/bin/env python3
"""Writes tokenizer_*.json: what the Hugging Face tokenizers library makes of some two thousand awkward strings.

Three small vocabularies are trained here (their tokenizer files are committed); the default model's is built from its GGUF file and
checked against transformers' own reading of it. Strings are stored as UTF-8 text; ids as the library returns them with special tokens
parsed ("special") and as plain text ("plain", left out where equal).

    python make_tokenizer.py [MODEL.gguf]       (tokenizers 0.22, gguf, transformers)
"""
import json
import random
import sys
import unicodedata
from pathlib import Path

from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = Path(__file__).resolve().parent
GGUF = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parents[1] / "build/models/SmolLM2-135M-Instruct.Q4_1.gguf"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

SAMPLES = """The harbour master's ledger isn't wet; it's merely old. They've said we'll sail at 06:45, but I'd wait.
for (int i = 0; i < count; ++i) { total += values[i] * 3.14159; }  // sum
def tide(height, hour=12):\n    return height * 2 ** 0.5 if hour else None\n
\tTabs\tand  double   triple    spaces     and trailing   \n\n\nNew lines\r\nWindows lines\r\n\r\n
Der alte Leuchtturmwärter zählt die Schiffe. Größe, Maß, Straße, ẞ und ſ.
Le phare éclaire l'île où l'été s'achève; ça suffit, n'est-ce pas ?
El faro gira: ¿quién cuenta las olas? ¡Nadie! Mañana, quizá.
Маяк стоит на скале, и смотритель пишет письма каждый вечер.
灯台守は二冊の帳面を持っている。第一冊には潮の高さを書く。
등대지기는 두 권의 공책을 가지고 있다. 파도와 안개.
灯塔看守人有两本笔记本,一本写潮水,一本写遗忘的事情。
حارس المنارة يكتب كل ليلة في دفترين قديمين ١٢٣٤.
שומר המגדלור כותב בשני מחברות, ואחת מהן ריקה.
प्रकाशस्तंभ का रखवाला दो पुस्तिकाएँ रखता है। १२३
ผู้ดูแลประภาคารมีสมุดสองเล่ม
Người gác hải đăng có hai quyển sổ ghi chép.
Ο φαροφύλακας κρατά δύο τετράδια, ένα για τη θάλασσα.
🌊⚓🚢 👩‍🚀 👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇳🇴🇯🇵 1️⃣ ❤️‍🔥 ☎️
SELECT name, depth FROM buoys WHERE depth >= 12.5 AND name LIKE 'N%' ORDER BY depth DESC;
<html><body class="a-b_c">&nbsp;&lt;tag&gt;</body></html> {"key": [1, 2, null], "x": -3e-7}
∑∫√∞≠≤≥±×÷ ½ ¼ ² ³ ⅷ Ⅻ ① ⑳ ㊿ ٣ ৪ 𝟙 𝟘 ௧ 〇 一二三
naïve café Zoë façade jalapeño Ångström coöperate résumé Åse
''s 'S 't 'T 'Re 'VE 'm 'LL 'D 'ſ don't DON'T we'Ve x'y ' s '' ''' it''s
https://example.org/a/b?c=d&e=f#g user@example.org +47 123 45 678 ISBN 978-3-16-148410-0""".split("\n")

# Templates as their models ship them; the default model's comes from its file.
TEMPLATES = [
    ("llama-3-instruct", "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"),
    ("chatml", "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"),
]


def strings(special):
    rng = random.Random(20)
    out = ["", " ", "  ", "\n", "\r\n", "\t", "\0", "a", "é", "e\u0301", "\u0301", "\ufeff", "\ufffd", "\U0010ffff", "\ud7ff", "\ue000"]
    out += SAMPLES + [" " + s for s in SAMPLES] + [s + "\n" for s in SAMPLES] + [s.upper() for s in SAMPLES]
    for n in (2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64, 100):
        out += [" " * n, "\n" * n, "\t" * n, "a" * n, "=" * n, "0" * n, "é" * n, "😀" * min(n, 20), " " * n + "x", "x" + " " * n, " " * n + "7", "\n" * n + "x"]
    blanks = [" ", "\t", "\n", "\r", "\x0b", "\x0c", "\x85", "\xa0", "\u1680", "\u2003", "\u2028", "\u202f", "\u205f", "\u3000", "\u200b", "\u180e", "\x1c", "\x1f"]
    words = [w for s in SAMPLES for w in s.split()]
    marks = [chr(c) for c in list(range(0x300, 0x370)) + list(range(0x483, 0x488)) + list(range(0x591, 0x5C8)) + list(range(0x93C, 0x950)) + [0x302A, 0x3099, 0x309A, 0x20D0, 0x1DFA, 0x16FF0]]
    letters = list("aeioucnsAEOULZ") + ["ß", "가", "각", "ᄀ", "ᅡ", "ᆨ", "क", "か", "カ", "\u212b", "\u2126", "\u1e9b", "\uf900", "\u0958", "\u0344", "\ufb1d", "\U0001d15e"]
    unassigned = [c for c in range(0x370, 0x30000) if unicodedata.category(chr(c)) == "Cn"]
    for _ in range(260):  # white space of every kind among words
        out.append("".join(rng.choice(blanks) * rng.randint(1, 3) + rng.choice(words + ["", "7", "-"]) for _ in range(rng.randint(1, 6))))
    for _ in range(260):  # words glued and apart
        out.append("".join(rng.choice(words) + rng.choice(["", " ", " ", "  ", "\n", "-", ". ", "'s ", "12 "]) for _ in range(rng.randint(2, 9))))
    for _ in range(260):  # combining marks, Hangul parts, singletons: what NFC reorders and composes
        out.append("".join(rng.choice(letters) + "".join(rng.choice(marks) for _ in range(rng.randint(0, 4))) for _ in range(rng.randint(1, 5))))
    for _ in range(300):  # any code points
        out.append("".join(chr(rng.choice([rng.randrange(0x80), rng.randrange(0x800), rng.randrange(0xD800), rng.randrange(0xE000, 0x20000), rng.randrange(0x20000, 0x110000)])) for _ in range(rng.randint(1, 8))))
    for _ in range(160):  # unassigned ones among letters and digits
        out.append("".join(chr(rng.choice(unassigned)) + rng.choice(["", "a", " b", "3", "!"]) for _ in range(rng.randint(1, 4))))
    for _ in range(140):  # control characters
        out.append("".join(chr(rng.choice([rng.randrange(0x20), rng.randrange(0x7F, 0xA0)])) + rng.choice(["", "x", " ", "0"]) for _ in range(rng.randint(1, 8))))
    for _ in range(160):  # digits in many scripts
        out.append("".join(rng.choice(["", " ", "  ", ".", ",", "x"]) + "".join(rng.choice("0123456789٣৪½²Ⅻ①〇一𝟙") for _ in range(rng.randint(1, 7))) for _ in range(rng.randint(1, 4))))
    for _ in range(160):  # contractions
        out.append("".join(rng.choice(["'", "'", "’", " '", "n'"]) + rng.choice(["s", "S", "ſ", "t", "re", "RE", "rE", "ve", "m", "ll", "lL", "d", "l", "r", "v", "", "x", "'"]) + rng.choice(["", " ", "a", "1"]) for _ in range(rng.randint(1, 5))))
    for _ in range(200):  # special and added tokens in the text, whole and broken
        out.append("".join(rng.choice([rng.choice(special), rng.choice(special), rng.choice(special)[:-1], rng.choice(special)[1:], rng.choice(words), " ", "  \n", "é", "1"]) for _ in range(rng.randint(1, 6))))
    return list(dict.fromkeys(s for s in out if not any(0xD800 <= ord(c) < 0xE000 for c in s)))


def cases(tokenizer, special, every=1):
    rows = []
    for text in strings(special)[::every]:
        tokenizer.encode_special_tokens = False
        parsed = tokenizer.encode(text, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = True
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        rows.append([text, parsed] if parsed == plain else [text, parsed, plain])
    tokenizer.encode_special_tokens = False
    framed = tokenizer.encode("one two", add_special_tokens=True).ids
    return {"cases": rows, "framed": ["one two", framed]}


def write(name, data):
    path = HERE / f"tokenizer_{name}.json"
    path.write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(path.name, len(data["cases"]), path.stat().st_size)


def default_model():
    fields = GGUFReader(GGUF).fields
    get = lambda key: fields["tokenizer." + key].contents()
    tokens, types = get("ggml.tokens"), get("ggml.token_type")
    merges = [tuple(m.split(" ")) for m in get("ggml.merges")]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, types) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    data = cases(tokenizer, special)
    compare_with_transformers(tokenizer, data)
    data["frames"] = [[name, template, chat(template)] for name, template in [("smollm2-instruct", get("chat_template"))] + TEMPLATES]
    missing = [b for b, c in sorted((b, c) for c, b in {v: k for k, v in byte_letters().items()}.items()) if c not in set(tokens)]
    data["missingBytes"] = missing
    write("smollm", data)


def byte_letters():
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters, extra = {}, 0
    for byte in range(256):
        letters[byte] = chr(byte) if byte in visible else chr(0x100 + extra)
        extra += byte not in visible
    return letters


def compare_with_transformers(tokenizer, data):
    """transformers' GGUF reader ignores tokenizer.ggml.pre and uses GPT-2's split alone: digits apart, the two must agree."""
    from transformers import AutoTokenizer
    other = AutoTokenizer.from_pretrained(GGUF.parent, gguf_file=GGUF.name)
    texts = [row[0] for row in data["cases"] if not any(unicodedata.category(c)[0] == "N" for c in row[0])]
    different = [t for t in texts if other(t, add_special_tokens=False)["input_ids"] != tokenizer.encode(t, add_special_tokens=False).ids]
    print("transformers differs on", len(different), "of", len(texts), [d[:40] for d in different[:5]])


def chat(template):
    from transformers import AutoTokenizer
    other = AutoTokenizer.from_pretrained(GGUF.parent, gguf_file=GGUF.name)
    other.bos_token = "<|begin_of_text|>"  # used by the Llama 3 template only
    messages = [{"role": "user", "content": "Which lamp is lit?"}]
    return other.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, chat_template=template)


def small(name, pre, normalizer, special, ignore_merges, extra):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    corpus = [s for s in SAMPLES for _ in range(3)]
    trainer = trainers.BpeTrainer(vocab_size=800, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    if ignore_merges:  # a token no merge reaches: only ignore_merges finds it
        blob = json.loads(tokenizer.to_str())
        blob["model"]["vocab"]["Ġzqzq"] = len(blob["model"]["vocab"])
        tokenizer = Tokenizer.from_str(json.dumps(blob))
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.add_tokens(extra)
    if name == "llama3":
        bos = tokenizer.token_to_id(special[0])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
            single=f"{special[0]} $A", pair=f"{special[0]} $A {special[0]} $B", special_tokens=[(special[0], bos)])])
    path = HERE / f"tokenizer_{name}.tokenizer.json"
    blob = json.loads(tokenizer.to_str())
    path.write_text(json.dumps(blob, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(path))
    data = cases(tokenizer, special + [t.content for t in extra] + [" zqzq"], every=3)
    print(path.name, tokenizer.get_vocab_size(), path.stat().st_size)
    write(name, data)


def main():
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = lambda regex: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), byte_level])
    small("gpt2", pre_tokenizers.ByteLevel(add_prefix_space=True), None, ["<|end|>"], False,
          [AddedToken("<mask>", lstrip=True, normalized=False), AddedToken("knot", single_word=True, normalized=True), AddedToken("[r]", rstrip=True), AddedToken("<|end|><mask>", normalized=False)])
    small("llama3", split(CONTRACTIONS + r"\p{N}{1,3}" + REST), None, ["<|begin|>", "<|end|>", "<|eot|>", "<|e"], True, [])
    small("qwen2", split(CONTRACTIONS + r"\p{N}" + REST), normalizers.NFC(), ["<|im_start|>", "<|im_end|>"], False, [AddedToken("<tool>", normalized=False), AddedToken("Zoe\u0308", normalized=True)])
    default_model()


if __name__ == "__main__":
    main()
