// Drives an OpenAI endpoint with the npm package openai and prints what its user sees as one JSON object.
// Arguments: base URL, model that echoes, model that generates, model whose worker dies while it streams.
// On standard error it prints "streaming" once the stream that is to be broken has begun.
const { OpenAI, APIError } = require("openai");

const [baseURL, echo, story, mortal] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0, timeout: 60_000 });

const usage = (u) => u && [u.prompt_tokens, u.completion_tokens, u.total_tokens];

// failure is what a call that must fail throws.
async function failure(call) {
  try {
    await call();
  } catch (e) {
    return {
      api_error: e instanceof APIError, class: e.constructor.name, status: e.status ?? null, code: e.code ?? null,
      type: e.type ?? null, param: e.param ?? null, message: e.message,
    };
  }
  return { class: "none" };
}

// collect reads a stream to its end.
async function collect(stream, text) {
  const out = { text: "", pieces: 0, finish_reason: null, usage: null };
  for await (const chunk of stream) {
    const choice = chunk.choices[0];
    if (chunk.usage) out.usage = usage(chunk.usage);
    if (!choice) continue;
    const piece = text(choice);
    if (piece) { out.text += piece; out.pieces++; }
    if (choice.finish_reason) out.finish_reason = choice.finish_reason;
  }
  return out;
}

async function main() {
  const out = {};
  out.models = [];
  for await (const m of client.models.list()) out.models.push(m.id);
  out.model = (await client.models.retrieve(echo)).id;

  const words = "one two three \u{1F41D}";
  const chat = { model: echo, messages: [{ role: "system", content: "Echo." }, { role: "user", content: words }] };
  const asked = await client.chat.completions.create(chat);
  out.chat = { text: asked.choices[0].message.content, role: asked.choices[0].message.role, finish_reason: asked.choices[0].finish_reason, usage: usage(asked.usage) };
  out.chat_parts = (await client.chat.completions.create({ model: echo, messages: [{ role: "user", content: [{ type: "text", text: words }] }] })).choices[0].message.content;
  const streamed = { stream: true, stream_options: { include_usage: true } };
  out.chat_stream = await collect(await client.chat.completions.create({ ...chat, ...streamed }), (c) => c.delta.content);
  out.chat_stream_without_usage = (await collect(await client.chat.completions.create({ ...chat, stream: true }), (c) => c.delta.content)).usage;

  const completion = { model: echo, prompt: words };
  const completed = await client.completions.create(completion);
  out.completion = { text: completed.choices[0].text, finish_reason: completed.choices[0].finish_reason, usage: usage(completed.usage) };
  out.completion_stream = await collect(await client.completions.create({ ...completion, ...streamed }), (c) => c.text);
  out.length = (await client.completions.create({ ...completion, max_tokens: 2 })).choices[0].finish_reason;
  const embedded = await client.embeddings.create({ model: echo, input: ["a", "b"], encoding_format: "float" });
  out.embeddings = embedded.data.map((d) => [d.index, d.embedding.length > 0]);

  out.unknown_model = await failure(() => client.chat.completions.create({ ...chat, model: "no-such-model" }));
  out.unknown_model_stream = await failure(() => client.chat.completions.create({ ...chat, model: "no-such-model", stream: true }));
  out.unknown_retrieve = await failure(() => client.models.retrieve("no-such-model"));
  out.bad_parameter = await failure(() => client.chat.completions.create({ ...chat, temperature: 9 }));
  out.bad_parameter_stream = await failure(() => client.completions.create({ ...completion, max_tokens: -1, stream: true }));
  out.image = await failure(() => client.chat.completions.create({ model: echo, messages: [{ role: "user", content: [{ type: "image_url", image_url: { url: "http://127.0.0.1:1/x.png" } }] }] }));

  if (story) {
    const tale = { model: story, prompt: "Once upon a time", temperature: 0, max_tokens: 40 };
    const told = await client.completions.create(tale);
    out.story = { text: told.choices[0].text, finish_reason: told.choices[0].finish_reason, usage: usage(told.usage) };
    out.story_stream = await collect(await client.completions.create({ ...tale, ...streamed }), (c) => c.text);
    const together = await Promise.all([1, 2, 3, 4].map(() => client.completions.create(tale)));
    out.story_together = together.map((t) => t.choices[0].text);
    out.story_embeddings = await failure(() => client.embeddings.create({ model: story, input: "x" }));
    out.too_long = await failure(() => client.completions.create({ ...tale, prompt: "word ".repeat(5000) }));
  }

  const controller = new AbortController();
  const cancelled = await client.chat.completions.create({ model: mortal, messages: [{ role: "user", content: "x" }], stream: true }, { signal: controller.signal });
  let before = 0;
  for await (const _ of cancelled) if (++before === 3) controller.abort();
  out.cancelled_after = before;

  let received = 0;
  out.worker_lost = await failure(async () => {
    const dying = await client.chat.completions.create({ model: mortal, messages: [{ role: "user", content: "x" }], stream: true });
    for await (const chunk of dying) if (chunk.choices[0]?.delta.content && ++received === 3) console.error("streaming");
  });
  out.received_before_loss = received >= 3;
  console.log(JSON.stringify(out));
}

main().catch((e) => { console.error(e); process.exit(1); });
