"""Drives an OpenAI endpoint with the PyPI package openai and prints what its user sees as one JSON object.

Arguments: base URL, model that echoes, model that generates, model whose worker dies while it streams.
On standard error it prints "streaming" once the stream that is to be broken has begun.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import openai

base_url, echo, story, mortal = sys.argv[1:5]
client = openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=60)


def usage(u):
    return u and [u.prompt_tokens, u.completion_tokens, u.total_tokens]


def failure(call):
    """What a call that must fail raises."""
    try:
        call()
    except Exception as e:  # the test says which one it wants
        return {
            "api_error": isinstance(e, openai.APIError),
            "class": type(e).__name__,
            "status": getattr(e, "status_code", None),
            "code": getattr(e, "code", None),
            "type": getattr(e, "type", None),
            "param": getattr(e, "param", None),
            "message": str(e),
        }
    return {"class": "none"}


def collect(stream, text):
    """Reads a stream to its end."""
    out = {"text": "", "pieces": 0, "finish_reason": None, "usage": None}
    for chunk in stream:
        if chunk.usage:
            out["usage"] = usage(chunk.usage)
        if not chunk.choices:
            continue
        choice = chunk.choices[0]
        piece = text(choice)
        if piece:
            out["text"] += piece
            out["pieces"] += 1
        if choice.finish_reason:
            out["finish_reason"] = choice.finish_reason
    return out


out = {"models": [m.id for m in client.models.list()], "model": client.models.retrieve(echo).id}

words = "one two three \U0001F41D"
chat = {"model": echo, "messages": [{"role": "system", "content": "Echo."}, {"role": "user", "content": words}]}
asked = client.chat.completions.create(**chat)
out["chat"] = {
    "text": asked.choices[0].message.content,
    "role": asked.choices[0].message.role,
    "finish_reason": asked.choices[0].finish_reason,
    "usage": usage(asked.usage),
}
parts = [{"role": "user", "content": [{"type": "text", "text": words}]}]
out["chat_parts"] = client.chat.completions.create(model=echo, messages=parts).choices[0].message.content
streamed = {"stream": True, "stream_options": {"include_usage": True}}
out["chat_stream"] = collect(client.chat.completions.create(**chat, **streamed), lambda c: c.delta.content)
out["chat_stream_without_usage"] = collect(client.chat.completions.create(**chat, stream=True), lambda c: c.delta.content)["usage"]

completion = {"model": echo, "prompt": words}
completed = client.completions.create(**completion)
out["completion"] = {
    "text": completed.choices[0].text,
    "finish_reason": completed.choices[0].finish_reason,
    "usage": usage(completed.usage),
}
out["completion_stream"] = collect(client.completions.create(**completion, **streamed), lambda c: c.text)
out["length"] = client.completions.create(**completion, max_tokens=2).choices[0].finish_reason
embedded = client.embeddings.create(model=echo, input=["a", "b"], encoding_format="float")
out["embeddings"] = [[d.index, len(d.embedding) > 0] for d in embedded.data]

out["unknown_model"] = failure(lambda: client.chat.completions.create(**{**chat, "model": "no-such-model"}))
out["unknown_model_stream"] = failure(lambda: client.chat.completions.create(**{**chat, "model": "no-such-model", "stream": True}))
out["unknown_retrieve"] = failure(lambda: client.models.retrieve("no-such-model"))
out["bad_parameter"] = failure(lambda: client.chat.completions.create(**chat, temperature=9))
out["bad_parameter_stream"] = failure(lambda: client.completions.create(**completion, max_tokens=-1, stream=True))
image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}]}]
out["image"] = failure(lambda: client.chat.completions.create(model=echo, messages=image))

if story:
    tale = {"model": story, "prompt": "Once upon a time", "temperature": 0, "max_tokens": 40}
    told = client.completions.create(**tale)
    out["story"] = {"text": told.choices[0].text, "finish_reason": told.choices[0].finish_reason, "usage": usage(told.usage)}
    out["story_stream"] = collect(client.completions.create(**tale, **streamed), lambda c: c.text)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda _: client.completions.create(**tale), range(4)))
    out["story_together"] = [t.choices[0].text for t in together]
    out["story_embeddings"] = failure(lambda: client.embeddings.create(model=story, input="x"))
    out["too_long"] = failure(lambda: client.completions.create(**{**tale, "prompt": "word " * 5000}))

ask = {"model": mortal, "messages": [{"role": "user", "content": "x"}], "stream": True}
before = 0
with client.chat.completions.create(**ask) as cancelled:
    for _ in cancelled:
        before += 1
        if before == 3:
            break
out["cancelled_after"] = before

received = 0


def die():
    global received
    for chunk in client.chat.completions.create(**ask):
        if chunk.choices and chunk.choices[0].delta.content:
            received += 1
            if received == 3:
                print("streaming", file=sys.stderr, flush=True)


out["worker_lost"] = failure(die)
out["received_before_loss"] = received >= 3
print(json.dumps(out))
