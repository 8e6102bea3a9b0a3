// A vendor for a JSON index of models: "shelf:NAME" is the model of that name in the index that the setting "index" names.
import { Answer, allocate, callHost, fail, give, ok, quote, read, release } from "./abi";
import { Value, parse } from "./json";
import { MANIFEST } from "./manifest";

const SCHEME = "shelf:";

let index = "";

function handle(method: string, request: string): Answer {
  const r = parse(request);
  if (r === null) return fail("internal", "bad_request", "The request is not JSON.");
  if (method == "/plugin.v1.Plugin/GetInfo") return own("info");
  if (method == "/plugin.v1.Plugin/GetSchema") return own("schema");
  if (method == "/plugin.v1.Plugin/Configure") return configure(r.get("configJson").text);
  if (method == "/vendor.v1.Vendor/Resolve") return resolve(r.get("reference").text);
  return fail("invalid", "unimplemented", "The plugin does not have this method.");
}

/** A part of the manifest, as it stands there. */
function own(part: string): Answer {
  const start = MANIFEST.indexOf('"' + part + '": {') + part.length + 4;
  let depth = 0;
  for (let i = start; i < MANIFEST.length; i++) {
    const c = MANIFEST.charCodeAt(i);
    if (c == 123) depth++;
    if (c == 125 && --depth == 0) return ok(MANIFEST.substring(start, i + 1));
  }
  return fail("internal", "bad_manifest", "The manifest of the plugin is damaged.");
}

function configure(config: string): Answer {
  const c = parse(config);
  index = c === null ? "" : c.get("index").text;
  if (index == "") return fail("invalid", "no_index", "The setting index must be the URL of an index of models.", ',"param":"index"');
  return ok("{}");
}

function unreadable(): Answer {
  return fail("unavailable", "no_index", "The index of models could not be read; check the setting index, or try again later.");
}

function resolve(reference: string): Answer {
  const name = reference.startsWith(SCHEME) ? reference.substring(SCHEME.length) : reference;
  const head = callHost("/host.v1.Host/HttpDo", '{"method":"GET","url":' + quote(index) + "}");
  if (head.failed) return head;
  const status = parse(head.json);
  if (status === null || status.get("status").text != "200") return unreadable();
  const body = callHost("/host.v1.Host/HttpBody", "");
  if (body.failed) return body;
  const found = parse(body.json);
  if (found === null) return unreadable();
  const models = found.get("models").items;
  for (let i = 0; i < models.length; i++) {
    if (models[i].get("name").text == name) return ok(manifest(reference, models[i]));
  }
  return fail("not_found", "model_not_found", "The index has no model " + name + "; check its name.");
}

function manifest(reference: string, model: Value): string {
  const format = model.get("format").text, files = model.get("files").items;
  const parts: string[] = [];
  for (let i = 0; i < files.length; i++) parts.push(file(files[i]));
  return '{"reference":' + quote(reference) + ',"format":' + quote(format == "" ? "gguf" : format) + ',"files":[' + parts.join(",") + "]}";
}

function file(f: Value): string {
  const size = f.get("size").text, digest = f.get("sha256").text;
  return '{"path":' + quote(f.get("path").text) + ',"role":"weights","size":' + quote(size == "" ? "-1" : size) +
    ',"sources":[{"ranges":true,"url":' + quote(f.get("url").text) + "}]" + (digest == "" ? "" : ',"digests":{"sha256":' + quote(digest) + "}") + "}";
}

export function apiary_abi_v1(): u32 {
  return 0;
}

export function apiary_alloc(size: u32): usize {
  return allocate(size);
}

export function apiary_free(p: usize): void {
  release(p);
}

export function apiary_invoke(method: usize, methodLen: u32, request: usize, requestLen: u32): u64 {
  return give(handle(read(method, methodLen), read(request, requestLen)));
}
