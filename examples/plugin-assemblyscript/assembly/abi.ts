// The ABI of Apiary's WASM plugins, version 1.

@external("apiary_v1", "call")
declare function call(method: usize, methodLen: u32, request: usize, requestLen: u32): i64;
@external("apiary_v1", "reply")
declare function reply(into: usize): void;

/** An answer: JSON of a message, or of an error. */
export class Answer {
  constructor(public failed: bool, public json: string) {}
}

export function ok(json: string): Answer {
  return new Answer(false, json);
}

/** An error for the user. The message is one full sentence; more are further members of the error, each with a comma before it. */
export function fail(kind: string, code: string, message: string, more: string = ""): Answer {
  return new Answer(true, '{"kind":' + quote(kind) + ',"code":' + quote(code) + ',"message":' + quote(message) + more + "}");
}

/** Writes text as a string of JSON. */
export function quote(text: string): string {
  const parts: string[] = ['"'];
  let start = 0;
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    if (c >= 32 && c != 34 && c != 92) continue;
    parts.push(text.substring(start, i));
    parts.push(c < 32 ? "\\u00" + (c < 16 ? "0" : "1") + "0123456789abcdef".charAt(c & 15) : "\\" + String.fromCharCode(c));
    start = i + 1;
  }
  parts.push(text.substring(start));
  parts.push('"');
  return parts.join("");
}

/** Calls a method of the host. The answer to HttpBody is text here; other bytes would need a function of their own. */
export function callHost(method: string, request: string): Answer {
  const m = String.UTF8.encode(method), r = String.UTF8.encode(request);
  const n = call(changetype<usize>(m), m.byteLength, changetype<usize>(r), r.byteLength);
  const bytes = new ArrayBuffer(<i32>(n < 0 ? -n : n));
  if (bytes.byteLength > 0) reply(changetype<usize>(bytes));
  return new Answer(n < 0, String.UTF8.decode(bytes));
}

/** What the host reads and writes is outside of what the collector of garbage moves or frees. */
export function allocate(size: u32): usize {
  return heap.alloc(size);
}

export function release(p: usize): void {
  heap.free(p);
}

export function read(p: usize, length: u32): string {
  return String.UTF8.decodeUnsafe(p, length);
}

export function give(answer: Answer): u64 {
  const text = String.UTF8.encode(answer.json);
  const p = heap.alloc(1 + text.byteLength);
  store<u8>(p, answer.failed ? 1 : 0);
  memory.copy(p + 1, changetype<usize>(text), text.byteLength);
  return (<u64>p << 32) | <u64>(1 + text.byteLength);
}

/** Ends the instance: it takes the place of an import that plugins do not have. */
export function abort(message: string | null, file: string | null, line: u32, column: u32): void {
  unreachable();
}
