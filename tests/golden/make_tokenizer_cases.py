#!/usr/bin/env python3
"""Writes tokenizer/tokenizer.json, a small tokenizer built like GLM's, and tokenizer_cases.json, what
Hugging Face's tokenizers makes of many texts with it and with variants of it.

Needs tokenizers. Run from anywhere: make_tokenizer_cases.py [OUTPUT_FOLDER]
"""
import copy
import json
import pathlib
import random
import sys
import unicodedata

import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).parent
VOCABULARY = 3000
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIAL = ("<|endoftext|> [MASK] [gMASK] [sMASK] <sop> <eop> <|system|> <|user|> <|assistant|> "
           "<|observation|> <|begin_of_image|> <|end_of_image|> <|begin_of_video|> <|end_of_video|> "
           "<|begin_of_audio|> <|end_of_audio|> <|begin_of_transcription|> "
           "<|end_of_transcription|>").split()
ORDINARY = ("<|code_prefix|> <|code_middle|> <|code_suffix|> <think> </think> <tool_call> </tool_call> "
            "<tool_response> </tool_response> <arg_key> </arg_key> <arg_value> </arg_value> /nothink "
            "<|begin_of_box|> <|end_of_box|> <|image|> <|video|>").split()

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and it isn't tired; we'll see what they've done.",
    "I'm sure you're right: she'd say it's theirs. HE'S HERE, WE'LL GO, THEY'RE LATE.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Портвейн на столе, а за окном идёт дождь и шумит старый лес.",
    "Η γρήγορη αλεπού πηδάει πάνω από το τεμπέλικο σκυλί.",
    "敏捷的棕色狐狸跳过了懒狗。今天的天气很好，我们去公园散步吧。",
    "素早い茶色の狐が怠け者の犬を飛び越える。カタカナとひらがな。",
    "다람쥐 헌 쳇바퀴에 타고파. 오늘은 날씨가 참 좋습니다.",
    "הדג הסקרן שט לו בים זך אך לפתע פגש חבורה נחמדה.",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر.",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश।",
    "def main(argc, argv):\n    return [x ** 2 for x in range(10) if x % 3 == 0]\n",
    "int main() {\n\tstd::cout << \"hi\\n\";\r\n\treturn 0;\r\n}\r\n",
    '{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln"}}}',
    "What is 12345 + 67890? It is 80235. 3.14159, 1,000,000 and 2024-11-24T03:00:00Z.",
]


def corpus():
    rng = random.Random(1)
    for _ in range(300):
        yield rng.choice(SENTENCES)
    for point in range(0x20, 0x3000):
        name = unicodedata.name(chr(point), "")
        if name:
            yield f"The {name.lower()} is {chr(point)}"


def train():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated", False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False))
    tree = json.loads(tokenizer.to_str())
    tree["model"]["ignore_merges"] = True
    # Without the merge that makes it a token can only be found as a whole piece.
    merges = tree["model"]["merges"]
    tree["model"]["merges"] = [m for i, m in enumerate(merges) if i < 200 or i % 7 != 0]
    base = max(tree["model"]["vocab"].values()) + 1
    tree["added_tokens"] = [
        {"id": base + i, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": content in SPECIAL}
        for i, content in enumerate(SPECIAL + ORDINARY)]
    return tree


def variants(tree):
    """name: JSON patch, applied to tokenizer.json both here and in the test."""
    base = max(t["id"] for t in tree["added_tokens"]) + 1
    think = [t["content"] for t in tree["added_tokens"]].index("<think>")

    def token(content, index, normalized):
        return {"id": base + index, "content": content, "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": normalized, "special": False}

    return {
        "as_is": [],
        "merged": [{"op": "replace", "path": "/model/ignore_merges", "value": False}],
        "plain": [{"op": "replace", "path": "/added_tokens", "value": []}],
        "two_passes": [
            {"op": "replace", "path": f"/added_tokens/{think}/normalized", "value": True},
            {"op": "add", "path": "/added_tokens/-", "value": token("<th", 0, False)},
            {"op": "add", "path": "/added_tokens/-", "value": token("é 键", 1, True)},
            {"op": "add", "path": "/added_tokens/-", "value": token("</think><", 2, False)},
            {"op": "add", "path": "/added_tokens/-", "value": token("abq", 3, True)},
            {"op": "add", "path": "/added_tokens/-", "value": token("bqc", 4, False)}],
        "removed": [
            {"op": "replace", "path": "/pre_tokenizer/pretokenizers/0/behavior", "value": "Removed"},
            {"op": "replace", "path": "/pre_tokenizer/pretokenizers/0/invert", "value": True},
            {"op": "replace", "path": "/pre_tokenizer/pretokenizers/0/pattern",
             "value": {"Regex": r"(?i:'s|'t)|\p{L}+|\p{N}{1,2}|\s+(?!\S)"}}],
    }


def patched(tree, patch):
    tree = copy.deepcopy(tree)
    for step in patch:
        *parents, last = step["path"].split("/")[1:]
        at = tree
        for key in parents:
            at = at[int(key)] if isinstance(at, list) else at[key]
        if step["op"] == "add" and last == "-":
            at.append(step["value"])
        else:
            at[last] = step["value"]
    return Tokenizer.from_str(json.dumps(tree))


def texts(rng):
    yield from SENTENCES
    yield from ["", " ", "  ", "   a", "a   ", "a  b", "\n", "\r\n", "\n\n\n", " \n \n ", "\t\tx", "a\r\rb",
                "x \r\n y", "\u00a0\u00a0a", "\u3000x", "\u2028\u2029", "\u180ex", "\u200bx", "\u0085\u0085x",
                "\x1c\x1d a", "\x0b\x0c"]
    for word in ["s", "S", "ſ", "t", "T", "re", "RE", "Re", "ve", "VE", "m", "M", "ll", "LL", "lL", "d", "D", "x"]:
        yield f"it'{word} '{word}{word} ’{word}"
    yield from ["0", "12", "123", "1234", "12345678901", "٣٤٥٦٧", "①②③④", "½¾", "Ⅷ", "x1y22z333w4444", "1,234.5"]
    yield from ["👍", "👩‍👩‍👧‍👦", "🇩🇪🇫🇷", "❤️", "e\u0301a\u0300", "ﬁ ﬆ ﬅ", "ŉ", "K ſ Å", "İıǅ", "\U0001d7d8\U0001d400",
                "\u0e01\u0e33", "\U00020000\U0002a6d6", "\uffff", "\U0010ffff", "\x00", "a\x00b", "\x7f", "\ufeffx", "\ufffd"]
    for token in SPECIAL + ORDINARY:
        yield f"a {token}b{token}{token} c\n{token}"
    yield from ["<think", "<think>>", "<<think>", "</think><tool_call>", "<th", "<think>abq bqc abqc", "é 键é 键",
                "<|user|", "<|use<|user|>r|>", "docs/nothink", "[gMASK]<sop><|user|>\nU<|assistant|>\n<think></think>",
                "</think></think><", "[MASK[MASK]]", "<|end_of_|image|>"]
    yield "word" * 40
    yield "a" * 300
    yield "ab" * 150
    yield " " * 100
    yield "=" * 77 + "\n"
    yield "漢" * 60
    pieces = SENTENCES + SPECIAL[:9] + ORDINARY[3:14] + [" ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "123", "4567", "é", "🙂"]
    for _ in range(60):
        parts = []
        for _ in range(rng.randrange(1, 7)):
            piece = rng.choice(pieces)
            begin = rng.randrange(len(piece))
            parts.append(piece[begin:begin + rng.randrange(1, 30)])
        yield "".join(parts)
    for _ in range(80):  # any characters at all
        high = rng.choice([0x80, 0x250, 0x3000, 0x11000, 0x110000])
        points = (rng.randrange(high) for _ in range(rng.randrange(1, 24)))
        yield "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)


def main():
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    tree = train()
    path = folder / "tokenizer" / "tokenizer.json"
    path.write_text(json.dumps(tree, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(f"{path}: {path.stat().st_size} bytes")

    rng = random.Random(2)
    patches = variants(tree)
    built = {name: patched(tree, patch) for name, patch in patches.items()}
    cases = []
    for text in texts(rng):
        ids = {name: t.encode(text, add_special_tokens=False).ids for name, t in built.items()}
        # What equals the file's own result is left out.
        cases.append({"text": text, "ids": ids["as_is"],
                      "variants": {n: v for n, v in ids.items() if v != ids["as_is"]}})
    decodings = []
    id_max = max(t["id"] for t in tree["added_tokens"])
    for index in range(120):
        high = [256, VOCABULARY, id_max + 60][index % 3]
        low = [0, 0, VOCABULARY - 30][index % 3]
        ids = [rng.randrange(low, high) for _ in range(rng.randrange(1, 20))]
        decodings.append({"ids": ids, "text": built["as_is"].decode(ids, skip_special_tokens=False),
                          "text_skip": built["as_is"].decode(ids, skip_special_tokens=True)})

    def lines(rows):
        return "[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]"

    path = folder / "tokenizer_cases.json"
    path.write_text('{"variants": ' + json.dumps(patches) + ',\n"encodings": ' + lines(cases) +
                    ',\n"decodings": ' + lines(decodings) + "}\n")
    print(f"{path}: {len(cases)} encodings, {len(decodings)} decodings, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
