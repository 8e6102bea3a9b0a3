// What @huggingface/hub gets from a hub: hub.cjs ENDPOINT REPO GATED TOKEN CACHE; prints JSON.
const { createHash } = require("node:crypto");
const { modelInfo, listFiles, downloadFile } = require("@huggingface/hub");

const [hubUrl, repo, gated, accessToken] = process.argv.slice(2);

async function digest(options) {
  const blob = await downloadFile({ hubUrl, ...options });
  if (!blob) throw Object.assign(new Error("no such file"), { statusCode: 404 });
  return createHash("sha256").update(Buffer.from(await blob.arrayBuffer())).digest("hex");
}

async function all(revision) {
  const listed = {};
  const files = {};
  for await (const f of listFiles({ hubUrl, repo, revision, recursive: true })) {
    if (f.type !== "file") continue;
    listed[f.path] = f.lfs ? f.lfs.oid : f.oid;
    files[f.path] = await digest({ repo, revision, path: f.path });
  }
  return [listed, files];
}

async function failure(call) {
  try {
    await call();
  } catch (e) {
    return String(e.statusCode ?? e);
  }
  return "";
}

(async () => {
  const info = await modelInfo({ hubUrl, name: repo, additionalFields: ["sha"] });
  const [listed, files] = await all(undefined);
  const [, pullRequest] = await all("refs/pr/1");
  console.log(JSON.stringify({
    commit: info.sha,
    listed,
    files,
    pull_request: pullRequest,
    gated: await failure(() => digest({ repo: gated, path: "m-Q8_0.gguf" })),
    with_token: await failure(() => digest({ repo: gated, path: "m-Q8_0.gguf", accessToken })),
    no_repo: await failure(() => digest({ repo: "test/none", path: "x", accessToken })),
    no_revision: await failure(() => digest({ repo, path: "README.md", revision: "v9" })),
    no_file: await failure(() => digest({ repo, path: "none.gguf" })),
  }));
})();
