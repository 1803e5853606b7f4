#!/usr/bin/env python3
"""Writes chat_cases.json: seeded random conversations and what the models' own templates make of them.

Needs jinja2. Run from anywhere: make_chat_cases.py [OUTPUT]
"""
import json
import pathlib
import random
import sys

import jinja2
import jinja2.ext

HERE = pathlib.Path(__file__).parent
TEMPLATES = {"glm45": "GLM-4.5.jinja", "glm47": "GLM-4.7-Flash.jinja"}
CASES = 200

TEXTS = [
    "", " ", "\n", "\n\n", "Hi", "Hello, world!", " leading", "trailing ", "\n both \n",
    "Grüße aus Köln", "你好，世界", "Привет", "שלום", "مرحبا", "👩‍👩‍👧‍👦 ok", "e\u0301", "a\u00a0b",
    "\u3000wide\u3000", "\u2003em\u2003", "\x1cunit\x1f", "\u0085next line\u0085", "\ufeffbom",
    "\u200bzero width\u200b", "tab\tand\rreturn\r\n", "quote \" and \\ slash", "<b>bold</b> & more",
    "/nothink", "why /nothink", "/nothink ", "docs/nothink/x", "{{ not a template }}", "{% if %}",
    "<|user|>", "<tool_call>f</tool_call>", "1\n2\n3", "x" * 60, "\u2028sep\u2029", "\x7fdel",
]
INLINE = [
    "<think>R</think>C", "<think>\nR\n</think>\n\nC\n", "</think>C", "<think></think>", "R</think>",
    "a<think>b</think>c</think>d", "<think>x<think>\n\ny\n\n</think>\nz", "<think>\n\n</think>\n",
    "<think>only open", "pre <think> mid </think> post", "<think> \u3000R\n \n</think> \n C",
]
NUMBERS = [
    0, -1, 7, 2**31, 2**63 - 1, -2**63, 2**64 - 1, 0.0, -0.0, 0.1, 1.0, 1.5, -2.25, 1e5, 1e15, 1e16,
    123456789012345680.0, 1e22, 1e-4, 1e-5, 1.5e-7, 5e-324, 1.7976931348623157e308, 0.30000000000000004,
    3.141592653589793, 100.0, 1234.5678,
]


def value(rng, depth=0):
    kind = rng.randrange(8 if depth < 4 else 5)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind == 2:
        return rng.uniform(-1, 1) * 10.0 ** rng.randrange(-30, 30)
    if kind in (3, 4):
        return rng.choice(TEXTS)
    if kind == 5:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return mapping(rng, depth + 1)


def mapping(rng, depth=0):
    keys = ["city", "days", "z", "a", "ключ", "键", "with space", 'q"uote', "", "opt", "<k>"]
    return {key: value(rng, depth) for key in rng.sample(keys, rng.randrange(5))}


def tool(rng):
    return {
        "type": "function",
        "function": {
            "name": rng.choice(["get_weather", "now", "поиск", "f"]),
            "description": rng.choice(TEXTS),
            "parameters": {"type": "object", "properties": mapping(rng), "required": []},
            "strict": rng.choice([True, False, None]),
        },
    }


def content(rng):
    text = rng.choice(TEXTS + INLINE) + rng.choice(["", "", rng.choice(TEXTS)])
    if rng.random() < 0.15:
        return [{"type": "text", "text": text}, {"type": "text", "text": rng.choice(TEXTS)}]
    return text


def message(rng, role):
    if role == "tool":
        return {"role": role, "content": rng.choice(TEXTS)}
    out = {"role": role, "content": content(rng)}
    if role == "assistant":
        if rng.random() < 0.5:
            out["reasoning_content"] = rng.choice(TEXTS)
        if rng.random() < 0.4:
            calls = [{"name": rng.choice(["get_weather", "now"]), "arguments": mapping(rng)}
                     for _ in range(rng.randrange(1, 4))]
            wrapped = [{"id": "c", "type": "function", "function": call} for call in calls]
            out["tool_calls"] = wrapped
    return out


def conversation(rng):
    if rng.random() < 0.3:  # any order at all
        roles = [rng.choice(["system", "user", "assistant", "tool"]) for _ in range(rng.randrange(1, 8))]
    else:
        roles = ["system"] if rng.random() < 0.5 else []
        for _ in range(rng.randrange(1, 4)):
            roles.append("user")
            if rng.random() < 0.6:
                roles.append("assistant")
            if rng.random() < 0.4:
                roles += ["tool"] * rng.randrange(1, 4) + rng.choice([[], ["assistant"], ["system"]])
    out = {"messages": [message(rng, role) for role in roles],
           "add_generation_prompt": rng.random() < 0.85}
    if rng.random() < 0.3:
        out["tools"] = [tool(rng) for _ in range(rng.randrange(0, 3))]
    if rng.random() < 0.6:
        out["enable_thinking"] = rng.random() < 0.5
    if rng.random() < 0.5:
        out["clear_thinking"] = rng.random() < 0.5
    return out


def environment():
    """As transformers sets it up for chat templates."""
    env = jinja2.Environment(trim_blocks=True, lstrip_blocks=True,
                             extensions=[jinja2.ext.loopcontrols])
    env.filters["tojson"] = lambda x, ensure_ascii=False: json.dumps(x, ensure_ascii=ensure_ascii)
    return env


def main():
    env = environment()
    templates = {name: env.from_string((HERE / "chat_template" / file).read_text())
                 for name, file in TEMPLATES.items()}
    rng = random.Random(45)
    cases = []
    for index in range(CASES):
        given = conversation(rng)
        cases.append({"name": f"random_{index}", "input": given,
                      "expected": {name: t.render(**given) for name, t in templates.items()}})
    output = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "chat_cases.json"
    lines = ",\n".join(json.dumps(case, ensure_ascii=True) for case in cases)
    output.write_text("[\n" + lines + "\n]\n")
    print(f"{output}: {len(cases)} cases, {output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
