"""Trains the tokenizer: byte-level BPE built as GLM's own, with 4,096 base tokens and GLM's 36 added tokens behind them.

    python3 make_tokenizer.py --text train.txt

Writes tokenizer.json and tokenizer_config.json beside this file. All 256 byte symbols are in the vocabulary, so any text survives the
round trip.
"""
import argparse
import itertools
import json
import os

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import world

HERE = os.path.dirname(os.path.abspath(__file__))
BASE_SIZE = 4096
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIAL = """<|endoftext|> [MASK] [gMASK] [sMASK] <sop> <eop> <|system|> <|user|> <|assistant|> <|observation|> <|begin_of_image|> <|end_of_image|>
<|begin_of_video|> <|end_of_video|> <|begin_of_audio|> <|end_of_audio|> <|begin_of_transcription|> <|end_of_transcription|>""".split()
ORDINARY = """<|code_prefix|> <|code_middle|> <|code_suffix|> <think> </think> <tool_call> </tool_call> <tool_response> </tool_response> <arg_key>
</arg_key> <arg_value> </arg_value> /nothink <|begin_of_box|> <|end_of_box|> <|image|> <|video|>""".split()


def texts(path, limit):
    """The documents without their control tokens, then the word table in the forms in which prose uses it."""
    with open(path, encoding="utf-8") as file:
        for line in itertools.islice(file, limit):
            text = json.loads(line)
            for token in SPECIAL + ORDINARY:
                text = text.replace(token, "\n")
            yield text
    for word in world.WORDS:
        yield f"{word} {word} {word} {word.capitalize()}\n" * 20
    for ending in ["s", "ed", "ing", "er", "ly", "est", "ness", "ment", "tion", "able", "ful", "less", "ation", "ity", "ive", "ous"]:
        yield " ".join(word + ending for word in world.WORDS)
    for number in range(100):
        yield f"{number} {number:02} " * 40


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="output of make_data.py")
    parser.add_argument("--limit", type=int, default=20000, help="documents to read")
    args = parser.parse_args()

    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)])
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=True, trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=BASE_SIZE, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[],
                                  show_progress=False)
    tokenizer.train_from_iterator(texts(args.text, args.limit), trainer)
    assert tokenizer.get_vocab_size() == BASE_SIZE, "too little text for the vocabulary"
    added = [AddedToken(text, special=True, normalized=False) for text in SPECIAL]
    added += [AddedToken(text, special=False, normalized=False) for text in ORDINARY]
    tokenizer.add_tokens(added)
    assert tokenizer.token_to_id("<|endoftext|>") == BASE_SIZE and tokenizer.get_vocab_size() == BASE_SIZE + 36
    for text in ["Hello, world!  It's 12345.\n\n", "Köln, 你好, привет, 안녕하세요, \U0001f600\u0000\u007f"]:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    tokenizer.save(os.path.join(HERE, "tokenizer.json"))

    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config = {
        "added_tokens_decoder": {str(BASE_SIZE + i): {"content": token.content, **flags, "special": token.special} for i, token in enumerate(added)},
        "additional_special_tokens": SPECIAL,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "model_max_length": 4096,
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    with open(os.path.join(HERE, "tokenizer_config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2, ensure_ascii=False)
        file.write("\n")


if __name__ == "__main__":
    main()
