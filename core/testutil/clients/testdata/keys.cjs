// Drives two queens with the npm package openai and API keys: keys.cjs URL URL MODEL SLOW KEY GONE; prints JSON.
//
// KEY is good until the script has printed "streaming" on standard error, and is then revoked. GONE has been revoked before.
const OpenAI = require("openai");

const [one, two, model, slow, key, gone] = process.argv.slice(2);
const client = (baseURL, apiKey) => new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60000 });
const ask = async (c) => (await c.chat.completions.create({ model, messages: [{ role: "user", content: "hello" }] })).choices[0].message.content;

async function failure(call) {
  try {
    await call();
  } catch (e) {
    return { api_error: e instanceof OpenAI.APIError, class: e.constructor.name, status: e.status, code: e.code, type: e.type };
  }
  return { class: "none" };
}

async function revokedStream() {
  let said = false;
  for await (const chunk of await client(two, key).chat.completions.create({ model: slow, messages: [{ role: "user", content: "go" }], stream: true })) {
    if (chunk.choices[0]?.delta?.content && !said) {
      said = true;
      console.error("streaming");
    }
  }
}

async function each(f) {
  return [await f(one), await f(two)];
}

(async () => {
  const has = async (url) => {
    for await (const m of client(url, key).models.list()) if (m.id === model) return true;
    return false;
  };
  console.log(JSON.stringify({
    answers: await each((url) => ask(client(url, key))),
    models: await each(has),
    none: await each((url) => failure(() => ask(client(url, "unused")))),
    gone: await each((url) => failure(() => ask(client(url, gone)))),
    stream: await failure(revokedStream),
    after: await each((url) => failure(() => ask(client(url, key)))),
  }));
})();
