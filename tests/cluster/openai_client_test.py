#!/usr/bin/env python3
"""Talks to a running gateway with OpenAI's own client.

Usage: openai_client_test.py BASE_URL    (such as http://127.0.0.1:8000/v1)

Needs the `openai` package. Prints one line per case, then "N passed, M failed"; exits 0 when none
failed. It asks for little and judges form, not wit: any model will do.
"""

import sys
import traceback

import openai

TIMEOUT_S = 120
QUESTION = [{"role": "user", "content": "What is 2 + 3?"}]


def check(condition, what):
    if not condition:
        raise AssertionError(what)


def check_usage(usage, tokens_max):
    check(usage is not None, "no usage")
    check(usage.prompt_tokens > 0, f"prompt_tokens is {usage.prompt_tokens}")
    check(0 < usage.completion_tokens <= tokens_max,
          f"completion_tokens is {usage.completion_tokens}, asked for at most {tokens_max}")
    check(usage.total_tokens == usage.prompt_tokens + usage.completion_tokens,
          f"total_tokens is {usage.total_tokens}")


def lists_models(client, model):
    check(client.models.retrieve(model).id == model, "the listed model cannot be retrieved")
    try:
        client.models.retrieve("no-such-model")
    except openai.NotFoundError:
        return
    raise AssertionError("a model that is not served was retrieved")


def chats(client, model):
    answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=32,
                                            temperature=0)
    check(answer.id.startswith("chatcmpl-"), f"id is {answer.id}")
    check(answer.object == "chat.completion", f"object is {answer.object}")
    check(answer.model == model, f"model is {answer.model}")
    check(len(answer.choices) == 1, f"{len(answer.choices)} choices")
    choice = answer.choices[0]
    check(choice.message.role == "assistant", f"role is {choice.message.role}")
    check(choice.finish_reason in ("stop", "length"), f"finish_reason is {choice.finish_reason}")
    text = (getattr(choice.message, "reasoning_content", None) or "") + choice.message.content
    check(text, "the answer is empty")
    check_usage(answer.usage, 32)
    return text


def streams_a_chat(client, model):
    whole = chats(client, model)
    stream = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=32,
                                            temperature=0, stream=True,
                                            stream_options={"include_usage": True})
    reasoning, content, roles, ends, usage = "", "", [], [], None
    for chunk in stream:
        check(chunk.object == "chat.completion.chunk", f"object is {chunk.object}")
        if not chunk.choices:
            usage = chunk.usage
            continue
        check(usage is None, "a choice after the usage")
        choice = chunk.choices[0]
        if choice.delta.role:
            roles.append(choice.delta.role)
        reasoning += getattr(choice.delta, "reasoning_content", None) or ""
        content += choice.delta.content or ""
        if choice.finish_reason:
            ends.append(choice.finish_reason)
    check(roles == ["assistant"], f"roles are {roles}")
    check(len(ends) == 1, f"finish reasons are {ends}")
    check_usage(usage, 32)
    check(reasoning + content == whole,
          f"streamed {reasoning + content!r}, whole {whole!r}")


def chats_without_thinking(client, model):
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=32, temperature=0,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    check(not getattr(answer.choices[0].message, "reasoning_content", None),
          "reasoned although thinking is off")


def takes_a_whole_conversation(client, model):
    client.chat.completions.create(
        model=model, max_tokens=8,
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "What is "},
                                         {"type": "text", "text": "the time?"}]},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "call_1", "type": "function",
                 "function": {"name": "clock", "arguments": "{\"zone\": \"UTC\"}"}}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "12:00"},
        ],
        tools=[{"type": "function", "function": {
            "name": "clock", "description": "Tells the time.",
            "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}}}],
        tool_choice="auto")


def completes(client, model):
    for prompt, choices in (("Hello", 1), (["Hello", "World"], 2), ([5, 6, 7], 1),
                            ([[5, 6], [7], [8]], 3)):
        answer = client.completions.create(model=model, prompt=prompt, max_tokens=4, temperature=0)
        check(answer.object == "text_completion", f"object is {answer.object}")
        check([choice.index for choice in answer.choices] == list(range(choices)),
              f"choices of {prompt!r} are {answer.choices}")
        check_usage(answer.usage, 4 * choices)


def streams_completions(client, model):
    request = {"model": model, "prompt": ["Hello", "World"], "max_tokens": 6, "temperature": 0}
    whole = client.completions.create(**request)
    texts = ["", ""]
    ended = set()
    for chunk in client.completions.create(stream=True, **request):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.finish_reason:
                ended.add(choice.index)
    check(ended == {0, 1}, f"ended are {ended}")
    check(texts == [choice.text for choice in whole.choices],
          f"streamed {texts}, whole {[choice.text for choice in whole.choices]}")


def repeats_a_seed(client, model):
    texts = {client.completions.create(model=model, prompt="Once", max_tokens=12, temperature=1,
                                       seed=7).choices[0].text for _ in range(2)}
    check(len(texts) == 1, f"one seed gave {texts}")


def echoes(client, model):
    answer = client.completions.create(model=model, prompt="Hello", max_tokens=2, echo=True)
    check(answer.choices[0].text.startswith("Hello"), f"text is {answer.choices[0].text!r}")


def leaves_midway(client, model):
    stream = client.chat.completions.create(model=model, messages=QUESTION, stream=True,
                                            extra_body={"ignore_eos": True})
    chunk = next(iter(stream))
    check(chunk.choices, "the first chunk has no choice")
    stream.close()
    # Others are served on.
    client.completions.create(model=model, prompt="Hello", max_tokens=1)


def refuses(client, model):
    def expect(kind, field, call):
        try:
            call()
        except kind as error:
            check(error.body and error.body.get("message"), f"{field}: no message")
            check(error.param == field, f"param is {error.param!r}, not {field!r}")
            check(field in error.body["message"], f"the message does not name {field}")
            return
        raise AssertionError(f"{field}: not refused with {kind.__name__}")

    def chat(**fields):
        request = {"model": model, "messages": QUESTION, "max_tokens": 1, **fields}
        return lambda: client.chat.completions.create(**request)

    expect(openai.BadRequestError, "temperature", chat(temperature=3))
    expect(openai.BadRequestError, "max_tokens", chat(max_tokens=-1))
    expect(openai.BadRequestError, "n", chat(n=2))
    expect(openai.BadRequestError, "messages", chat(messages=[]))
    expect(openai.BadRequestError, "messages[0].role",
           chat(messages=[{"role": "robot", "content": "hi"}]))
    expect(openai.BadRequestError, "frobnicate", chat(extra_body={"frobnicate": 1}))
    expect(openai.NotFoundError, "model", chat(model="no-such-model"))


def tells_request_ids(client, model):
    raw = client.completions.with_raw_response.create(
        model=model, prompt="Hello", max_tokens=1, extra_headers={"X-Request-Id": "mine-1"})
    check(raw.headers.get("x-request-id") == "mine-1",
          f"X-Request-Id is {raw.headers.get('x-request-id')}")


CASES = [lists_models, chats, streams_a_chat, chats_without_thinking, takes_a_whole_conversation,
         completes, streams_completions, repeats_a_seed, echoes, leaves_midway, refuses,
         tells_request_ids]


def main():
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    client = openai.OpenAI(base_url=sys.argv[1], api_key="none", timeout=TIMEOUT_S, max_retries=0)
    models = [model.id for model in client.models.list()]
    if not models:
        print("the gateway lists no model")
        return 1
    failed = 0
    for case in CASES:
        try:
            case(client, models[0])
            print(f"ok    {case.__name__}", flush=True)
        except Exception:  # whatever a case meets is its failure; the others go on
            failed += 1
            print(f"FAIL  {case.__name__}\n{traceback.format_exc()}", flush=True)
    print(f"{len(CASES) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
