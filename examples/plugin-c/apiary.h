/* The ABI of Apiary's WASM plugins, version 1, for C without a library. Include it in one file and write apiary_handle. */
#ifndef APIARY_H
#define APIARY_H

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

/* text is a part of somebody's memory, without a zero at its end. */
typedef struct {
  const u8 *at;
  u32 len;
} text;

#define TEXT(literal) ((text){(const u8 *)(literal), sizeof(literal) - 1})
#define IMPORT(name) __attribute__((import_module("apiary_v1"), import_name(name)))
#define EXPORT(name) __attribute__((export_name(name)))

IMPORT("call") long long apiary_call(const u8 *method, u32 method_len, const u8 *request, u32 request_len);
IMPORT("reply") void apiary_reply(u8 *into);

/* apiary_handle writes the answer to a request with put, or an error after fail. */
void apiary_handle(text method, text request);

/* Memory. Everything that is live belongs to one call, so all of it is free again when the host has freed what it knows of. */
extern u8 __heap_base;
static u32 heap_next, heap_live;

EXPORT("apiary_alloc") void *apiary_alloc(u32 size) {
  if (heap_next == 0) heap_next = ((u32)&__heap_base + 15) & ~15u;
  u32 at = heap_next, end = __builtin_wasm_memory_size(0) << 16;
  if (size > 0x40000000u) return 0;
  if (at + size + 16 > end && __builtin_wasm_memory_grow(0, (at + size + 16 - end + 65535) >> 16) == (u32)-1) return 0;
  heap_next = (at + size + 15) & ~15u;
  heap_live++;
  return (void *)at;
}

EXPORT("apiary_free") void apiary_free(void *p) {
  if (p && --heap_live == 0) heap_next = 0;
}

/* The reply grows by put. It is moved when something else was allocated behind it. */
static u8 *reply_at;
static u32 reply_len;

static void put(text t) {
  u8 *at = apiary_alloc(t.len), *from = reply_at;
  if (!at) __builtin_trap();
  heap_live--; /* the reply counts once, at its end */
  if (reply_len == 0 || at != reply_at + reply_len) {
    heap_next = (u32)at;
    if (!(at = apiary_alloc(reply_len + t.len))) __builtin_trap();
    heap_live--;
    for (u32 i = 0; i < reply_len; i++) at[i] = from[i];
    reply_at = at;
  }
  for (u32 i = 0; i < t.len; i++) reply_at[reply_len + i] = t.at[i];
  reply_len += t.len;
  heap_next = (u32)reply_at + reply_len; /* without a gap, for the next one */
}

/* fail throws away what was put and makes the reply an error: what follows is put into its "message", which fail leaves open. */
static void fail(const char *kind, const char *code) {
  text parts[] = {TEXT("\1{\"kind\":\""), {(const u8 *)kind, 0}, TEXT("\",\"code\":\""), {(const u8 *)code, 0}, TEXT("\",\"message\":\"")};
  while (kind[parts[1].len]) parts[1].len++;
  while (code[parts[3].len]) parts[3].len++;
  reply_len = 0;
  for (int i = 0; i < 5; i++) put(parts[i]);
}

EXPORT("apiary_abi_v1") u32 apiary_abi_v1(void) { return 0; }

EXPORT("apiary_invoke") u64 apiary_invoke(u8 *method, u32 method_len, u8 *request, u32 request_len) {
  reply_len = 0;
  put((text){(const u8 *)"\0", 1});
  apiary_handle((text){method, method_len}, (text){request, request_len});
  heap_next = (heap_next + 15) & ~15u;
  heap_live++; /* the reply: the host frees it */
  return (u64)(u32)reply_at << 32 | reply_len;
}

/* host calls the host. It returns the answer, or with ok = 0 an error, which pass_on gives back to the host as it is. What was put
   before is lost. */
static text host(text method, text request, int *ok) {
  long long n = apiary_call(method.at, method.len, request.at, request.len);
  *ok = n >= 0;
  u32 len = n < 0 ? (u32)-n : (u32)n;
  u8 *at = apiary_alloc(len);
  if (!at) __builtin_trap();
  heap_live--; /* it lives as long as the call */
  if (len) apiary_reply(at);
  reply_len = 0;
  return (text){at, len};
}

static void pass_on(text error) {
  reply_len = 0;
  put(TEXT("\1"));
  put(error);
}

#endif
