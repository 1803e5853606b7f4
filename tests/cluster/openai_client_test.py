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
    others = {client.completions.create(model=model, prompt="Once", max_tokens=12, temperature=2,
                                        seed=seed).choices[0].text for seed in range(6)}
    check(len(others) > 1, f"six seeds gave {others}")


def echoes(client, model):
    answer = client.completions.create(model=model, prompt="Hello", max_tokens=2, echo=True)
    check(answer.choices[0].text.startswith("Hello"), f"text is {answer.choices[0].text!r}")


def gives_n_answers(client, model):
    request = {"model": model, "messages": QUESTION, "max_tokens": 12, "temperature": 2, "n": 8,
               "seed": 11}
    answer = client.chat.completions.create(**request)
    check([choice.index for choice in answer.choices] == list(range(8)),
          f"choices are {answer.choices}")
    one = client.chat.completions.create(**{**request, "n": 1})
    check(answer.usage.prompt_tokens == one.usage.prompt_tokens,
          f"8 answers to {one.usage.prompt_tokens} tokens count {answer.usage.prompt_tokens}")
    check_usage(answer.usage, 8 * 12)

    def text(choice):
        message = getattr(choice, "message", None) or choice.delta
        return (getattr(message, "reasoning_content", None) or "") + (message.content or "")

    texts = [text(choice) for choice in answer.choices]
    check(text(one.choices[0]) == texts[0], "the first of 8 answers is not the only one of 1")
    streamed, ended = [""] * 8, set()
    for chunk in client.chat.completions.create(stream=True, **request):
        for choice in chunk.choices:
            streamed[choice.index] += text(choice)
            if choice.finish_reason:
                ended.add(choice.index)
    check(ended == set(range(8)), f"ended are {ended}")
    check(streamed == texts, f"streamed {streamed}, whole {texts}")


def gives_n_completions(client, model):
    request = {"model": model, "prompt": ["Hello", "Once"], "n": 4, "max_tokens": 8,
               "temperature": 2, "seed": 3}
    answer = client.completions.create(**request)
    check([choice.index for choice in answer.choices] == list(range(8)),
          f"choices are {answer.choices}")
    texts = [choice.text for choice in answer.choices]
    # An untrained model's next token is nearly any; a trained one's, after one word, many.
    check(len(set(texts[4:])) > 1, f"4 answers at temperature 2 are all {texts[4]!r}")
    again = [choice.text for choice in client.completions.create(**request).choices]
    check(again == texts, f"one seed gave {texts}, then {again}")


def tells_logprobs_of_a_chat(client, model):
    request = {"model": model, "messages": QUESTION, "max_tokens": 16, "temperature": 0,
               "logprobs": True, "top_logprobs": 3}
    choice = client.chat.completions.create(**request).choices[0]
    check(choice.logprobs.content, "no logprobs")
    for entry in choice.logprobs.content:
        check(entry.logprob <= 0, f"logprob is {entry.logprob}")
        check(bytes(entry.bytes).decode(errors="replace") == entry.token, f"entry is {entry}")
        tops = [top.logprob for top in entry.top_logprobs]
        check(len(tops) == 3 and tops == sorted(tops, reverse=True), f"alternatives are {tops}")
        check(entry.top_logprobs[0].token == entry.token, f"greedy took {entry}")
        check(abs(entry.logprob - tops[0]) < 1e-5, f"{entry.logprob} and {tops[0]} are one token's")
    streamed = []
    for chunk in client.chat.completions.create(stream=True, **request):
        for piece in chunk.choices:
            streamed += piece.logprobs.content if piece.logprobs else []
    check(streamed == choice.logprobs.content, "streamed logprobs are others")


def tells_logprobs_of_a_completion(client, model):
    request = {"model": model, "prompt": "Hello there", "max_tokens": 6, "temperature": 0,
               "logprobs": 2, "extra_body": {"ignore_eos": True}}
    plain = client.completions.create(**request).choices[0]
    check(len(plain.logprobs.tokens) == 6, f"tokens are {plain.logprobs.tokens}")
    echoed = client.completions.create(echo=True, **request).choices[0]
    logprobs = echoed.logprobs
    check(echoed.text == "Hello there" + plain.text, f"text is {echoed.text!r}")
    check(logprobs.token_logprobs[0] is None, "the first token has a logprob")
    check(all(value <= 0 for value in logprobs.token_logprobs[1:]),
          f"logprobs are {logprobs.token_logprobs}")
    check(logprobs.tokens[-6:] == plain.logprobs.tokens, "echo changed the answer's tokens")
    for token, offset in zip(logprobs.tokens, logprobs.text_offset):
        check(token.startswith("bytes:") or token.startswith("<|")
              or echoed.text[offset:offset + len(token)] == token,
              f"{token!r} is not at {offset} of {echoed.text!r}")
    prompt = client.completions.create(
        model=model, prompt=[5, 6, 7], max_tokens=1,
        extra_body={"prompt_logprobs": 1}).choices[0].prompt_logprobs
    check(prompt[0] is None and "6" in prompt[1] and "7" in prompt[2], f"of the prompt: {prompt}")


def penalises(client, model):
    def tokens(**fields):
        extra = {"ignore_eos": True, **fields.pop("extra", {})}
        return client.completions.create(model=model, prompt="a b a b a b a b", max_tokens=48,
                                         temperature=0, logprobs=0, extra_body=extra,
                                         **fields).choices[0].logprobs.tokens

    plain = tokens()  # goes on with what stands there again and again
    for fields in ({"frequency_penalty": 2}, {"presence_penalty": 2},
                   {"extra": {"repetition_penalty": 10}}):
        fewer = tokens(**fields)
        check(fewer != plain, f"{fields} changes nothing")
        check(len(set(fewer)) > len(set(plain)),
              f"{fields}: {len(set(fewer))} tokens differ, without {len(set(plain))}")


def biases(client, model):
    request = {"model": model, "prompt": [65], "echo": True, "max_tokens": 5, "temperature": 1,
               "logprobs": 0}
    for fields in ({"logit_bias": {"65": 100}}, {"extra_body": {"allowed_token_ids": [65]}}):
        tokens = client.completions.create(**request, **fields).choices[0].logprobs.tokens
        check(len(tokens) == 6 and len(set(tokens)) == 1, f"{fields}: tokens are {tokens}")
    banned = client.completions.create(**{**request, "temperature": 2},
                                       logit_bias={"65": -100}).choices[0].logprobs.tokens
    check(banned[0] not in banned[1:], f"the banned token came: {banned}")


def writes_no_bad_words(client, model):
    request = {"model": model, "prompt": "The capital of France is", "max_tokens": 24,
               "temperature": 0}
    words = [word.strip(".,") for word in client.completions.create(**request).choices[0].text.split()]
    words = [word for word in words if len(word) > 3 and word.isalpha()]
    check(words, "the answer has no word")
    text = client.completions.create(**request, extra_body={"bad_words": words}).choices[0].text
    check(words[0] not in text.split(), f"{words[0]!r} is in {text!r}")


def narrows_to_greedy(client, model):
    def text(**fields):
        return client.completions.create(model=model, prompt="Once", max_tokens=16,
                                         **fields).choices[0].text

    greedy = text(temperature=0)
    for extra in ({"min_p": 1}, {"top_k": 1}):
        check(text(temperature=2, extra_body=extra) == greedy, f"{extra} is not greedy")


def keeps_to_min_tokens(client, model):
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=200, temperature=0,
        extra_body={"min_tokens": 150, "chat_template_kwargs": {"enable_thinking": False}})
    check(answer.usage.completion_tokens >= 150,
          f"completion_tokens is {answer.usage.completion_tokens}")


def takes_salts_and_priorities(client, model):
    def text(**extra):
        return client.completions.create(model=model, prompt="Hello", max_tokens=4, temperature=0,
                                         extra_body=extra).choices[0].text

    check(text(cache_salt="a", priority=-5) == text(cache_salt="b", priority=5),
          "a salt or a priority changed the answer")


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
    expect(openai.BadRequestError, "n", chat(n=17))
    expect(openai.BadRequestError, "logit_bias", chat(logit_bias={"5": 101}))
    expect(openai.BadRequestError, "logit_bias", chat(logit_bias={"five": 1}))
    expect(openai.BadRequestError, "presence_penalty", chat(presence_penalty=2.5))
    expect(openai.BadRequestError, "frequency_penalty", chat(frequency_penalty=-2.5))
    expect(openai.BadRequestError, "top_logprobs", chat(logprobs=True, top_logprobs=21))
    expect(openai.BadRequestError, "min_p", chat(extra_body={"min_p": 2}))
    expect(openai.BadRequestError, "repetition_penalty", chat(extra_body={"repetition_penalty": 0}))
    expect(openai.BadRequestError, "bad_words", chat(extra_body={"bad_words": [" "]}))
    expect(openai.BadRequestError, "priority", chat(extra_body={"priority": 1001}))
    expect(openai.BadRequestError, "messages", chat(messages=[]))
    expect(openai.BadRequestError, "messages[0].role",
           chat(messages=[{"role": "robot", "content": "hi"}]))
    expect(openai.BadRequestError, "frobnicate", chat(extra_body={"frobnicate": 1}))
    expect(openai.NotFoundError, "model", chat(model="no-such-model"))


def tells_that_a_prompt_is_too_long(client, model):
    length = client.models.retrieve(model).max_model_len
    try:
        client.completions.create(model=model, prompt=[5] * length, max_tokens=1)
    except openai.BadRequestError as error:
        check(error.code == "context_length_exceeded", f"code is {error.code}")
        return
    raise AssertionError("a prompt of the model's whole length was taken")


def tells_request_ids(client, model):
    raw = client.completions.with_raw_response.create(
        model=model, prompt="Hello", max_tokens=1, extra_headers={"X-Request-Id": "mine-1"})
    check(raw.headers.get("x-request-id") == "mine-1",
          f"X-Request-Id is {raw.headers.get('x-request-id')}")


CASES = [lists_models, chats, streams_a_chat, chats_without_thinking, takes_a_whole_conversation,
         completes, streams_completions, repeats_a_seed, echoes, gives_n_answers,
         gives_n_completions, tells_logprobs_of_a_chat, tells_logprobs_of_a_completion, penalises,
         biases, writes_no_bad_words, narrows_to_greedy, keeps_to_min_tokens,
         takes_salts_and_priorities, leaves_midway, refuses, tells_that_a_prompt_is_too_long,
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
