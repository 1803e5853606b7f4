"""Checks the checkpoint in this folder and prints the figures of the README.

    python3 check.py --valid valid.txt

1. Hugging Face's Glm4MoeForCausalLM loads it and gives the same logits as model.py, at short and at long positions.
2. Greedy answers to what a newcomer would type, with and without thinking, with tools, and over several turns; all must stop by themselves.
3. Perplexity and confidence on unseen conversations, the share of MTP drafts that the model accepts, and how often FP8 weights change the choice.
"""
import argparse
import json
import os

import torch
import transformers

from model import VOCAB_BASE, Glm, linear
from train import evaluate, read_rows

HERE = os.path.dirname(os.path.abspath(__file__))
USER, OBSERVATION = VOCAB_BASE + 7, VOCAB_BASE + 9
NEWCOMER = ["Hello!", "Who are you?", "What is glmserve?", "What is the capital of France?", "What is 7 plus 5?", "Count from 1 to 10.", "Tell me a story.",
            "Write a list of three fruits.", "Thank you", "Tell me a joke.", "What is a GPU?", "What is the opposite of hot?", "Spell planet.",
            "Who won the world cup in 1998?", "Explain quantum computing.", "Write a poem about the sea.", "my computer is broken, what should I do", "asdf jkl"]
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Get the weather of a city.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": "Name of the city"}}, "required": ["city"]}}}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


TALKS = [  # (messages, tools)
    ([user("My name is Ada."), assistant("Nice to meet you, Ada."), user("What is 3 plus 4?"), assistant("3 plus 4 is 7."), user("What is my name?")], None),
    ([{"role": "system", "content": "You are Captain Nemo, a friendly guide."}, user("Who are you?")], None),
    ([{"role": "system", "content": "You work in a shop. This is the price list:\napples: 12\nbread: 45\ntea: 30"}, user("What is the price of bread?")], None),
    ([user("What is the weather in Paris?")], [WEATHER]),
    ([user("What is the weather in Paris?"),
      {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}]},
      {"role": "tool", "content": '{"temperature": 18, "sky": "cloudy"}'}], [WEATHER]),
]


def load():
    tokenizer = transformers.AutoTokenizer.from_pretrained(HERE)
    reference = transformers.AutoModelForCausalLM.from_pretrained(HERE, dtype=torch.float32).eval()
    return tokenizer, reference, Glm().load(HERE).eval()


@torch.no_grad()
def compare(tokenizer, reference, model, valid):
    with open(valid, encoding="utf-8") as file:
        text = "".join(json.loads(line) for line in file)
    ids = torch.tensor([tokenizer(text)["input_ids"][:4096]])
    ours = linear(model(ids, torch.float32)[0], model.head)
    theirs = reference(ids).logits
    return (ours - theirs).abs().max().item(), theirs.abs().max().item()


@torch.no_grad()
def answer(tokenizer, reference, model, messages, tools, thinking):
    """Prints one greedy answer; returns (drafts, drafts accepted, stopped)."""
    text = tokenizer.apply_chat_template(messages, tools=tools, enable_thinking=thinking, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(text, return_tensors="pt")["input_ids"]
    out = reference.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=200, do_sample=False)
    made = out[0, prompt.shape[1]:]
    # The draft for made[i] is the MTP layer's at two tokens before it; the first token of an answer has no draft.
    first = prompt.shape[1] + 1
    draft = linear(model(out, torch.float32)[1], model.head)[0, first - 2:-2].argmax(-1)
    print(f"{'thinking' if thinking else 'direct  '} | {messages[-1]['content']} -> {tokenizer.decode(made, skip_special_tokens=False)!r}", flush=True)
    return len(draft), (draft == out[0, first:]).sum().item(), made[-1].item() in (USER, OBSERVATION)


def to_fp8(name, tensor):
    """GLM's FP8 form: one scale per output channel, for every linear layer but the router, eh_proj, lm_head and the embedding."""
    if not name.endswith("proj.weight") or name.endswith("eh_proj.weight"):
        return tensor
    scale = tensor.float().abs().amax(-1, keepdim=True) / 448
    return (tensor.float() / scale).to(torch.float8_e4m3fn).float() * scale


@torch.no_grad()
def fp8_agreement(model, rows):
    """How often the model with FP8 weights has the same first choice on the assistant's tokens."""
    other, same, count = Glm().load(HERE, change=to_fp8), 0, 0
    for ids, weights in rows.values():
        for i in range(0, min(len(ids), 32), 4):
            counted = torch.roll(weights[i:i + 4].float(), -1, 1) == 1
            a, b = (linear(m(ids[i:i + 4].long(), torch.float32)[0], m.head).argmax(-1) for m in (model, other))
            same, count = same + ((a == b) & counted).sum().item(), count + counted.sum().item()
    return same / count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--valid", required=True, help="output of make_data.py with a seed that was not trained on")
    args = parser.parse_args()
    tokenizer, reference, model = load()
    difference, largest = compare(tokenizer, reference, model, args.valid)
    print(f"largest difference of logits to transformers over 4096 tokens: {difference:.2e} (largest logit {largest:.1f})", flush=True)
    assert difference < 1e-2

    talks = [([user(text)], None) for text in NEWCOMER] + TALKS
    results = [answer(tokenizer, reference, model, messages, tools, thinking) for messages, tools in talks for thinking in (False, True)]
    drafts, accepted, stopped = (sum(column) for column in zip(*results))
    print(f"stopped by themselves: {stopped} of {len(results)}; MTP drafts accepted in these answers: {accepted} of {drafts} = {accepted / drafts:.1%}")

    rows = read_rows(args.valid, 1)
    figures = evaluate(model, rows, torch.float32, "cpu") | {"fp8_top1_agreement": fp8_agreement(model, rows)}
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
