"""Drives two queens with the PyPI package openai and API keys: keys.py URL URL MODEL SLOW KEY GONE; prints JSON.

KEY is good until the script has printed "streaming" on standard error, and is then revoked. GONE has been revoked before.
"""

import json
import sys

import openai

one, two, model, slow, key, gone = sys.argv[1:]


def client(url, api_key):
    return openai.OpenAI(base_url=url, api_key=api_key, max_retries=0, timeout=60)


def ask(c):
    return c.chat.completions.create(model=model, messages=[{"role": "user", "content": "hello"}]).choices[0].message.content


def failure(call):
    try:
        call()
    except Exception as e:  # the test says which one it wants
        return {
            "api_error": isinstance(e, openai.APIError),
            "class": type(e).__name__,
            "status": getattr(e, "status_code", None),
            "code": getattr(e, "code", None),
            "type": getattr(e, "type", None),
        }
    return {"class": "none"}


def revoked_stream():
    said = False
    for chunk in client(two, key).chat.completions.create(model=slow, messages=[{"role": "user", "content": "go"}], stream=True):
        if chunk.choices and chunk.choices[0].delta.content and not said:
            said = True
            print("streaming", file=sys.stderr, flush=True)


print(json.dumps({
    "answers": [ask(client(url, key)) for url in (one, two)],
    "models": [model in [m.id for m in client(url, key).models.list()] for url in (one, two)],
    "none": [failure(lambda: ask(client(url, "unused"))) for url in (one, two)],
    "gone": [failure(lambda: ask(client(url, gone))) for url in (one, two)],
    "stream": failure(revoked_stream),
    "after": [failure(lambda: ask(client(url, key))) for url in (one, two)],
}))
