/* As much of JSON as a plugin needs that copies values from one message into another: it finds them and never decodes them. */
#ifndef JSON_H
#define JSON_H

#include "apiary.h"

static int same(text a, text b) {
  if (a.len != b.len) return 0;
  for (u32 i = 0; i < a.len; i++)
    if (a.at[i] != b.at[i]) return 0;
  return 1;
}

static text skip(text t, u32 n) { return n <= t.len ? (text){t.at + n, t.len - n} : (text){t.at + t.len, 0}; }

static text skip_space(text t) {
  while (t.len && (*t.at == ' ' || *t.at == '\n' || *t.at == '\r' || *t.at == '\t' || *t.at == ',' || *t.at == ':')) t = skip(t, 1);
  return t;
}

/* value returns the value at the beginning of t, with its quotes or brackets; an empty one when there is none. */
static text value(text t) {
  u32 n = 0, depth = 0;
  int quoted = 0;
  while (n < t.len) {
    u8 c = t.at[n];
    if (quoted) {
      if (c == '\\') n++;
      else if (c == '"') quoted = 0;
    } else if (c == '"') {
      quoted = 1;
    } else if (c == '{' || c == '[') {
      depth++;
    } else if (c == '}' || c == ']') {
      if (depth == 0) break;
      depth--;
    } else if (depth == 0 && (c == ',' || c == ':' || c == ' ' || c == '\n' || c == '\r' || c == '\t')) {
      break;
    }
    n++;
    if (depth == 0 && !quoted && (c == '"' || c == '}' || c == ']')) break;
  }
  return (text){t.at, n < t.len ? n : t.len};
}

/* next takes the first element of what is left of an array or object. */
static int next(text *rest, text *element) {
  *rest = skip_space(*rest);
  *element = value(*rest);
  *rest = skip(*rest, element->len);
  return element->len > 0;
}

/* inside is what is between the brackets or quotes of a value. */
static text inside(text v) { return v.len >= 2 ? (text){v.at + 1, v.len - 2} : (text){v.at, 0}; }

/* member returns the value of a key, an empty one when there is none. */
static text member(text object, text key) {
  text rest = inside(object), k, v;
  if (object.len == 0 || *object.at != '{') return (text){0, 0};
  while (next(&rest, &k) && next(&rest, &v))
    if (same(inside(k), key)) return v;
  return (text){0, 0};
}

/* unescape turns the text inside a string into what it means, as far as a JSON document in a string needs it. */
static text unescape(text t) {
  u8 *out = apiary_alloc(t.len);
  if (!out) __builtin_trap();
  heap_live--;
  u32 n = 0;
  for (u32 i = 0; i < t.len; i++) {
    u8 c = t.at[i];
    if (c == '\\' && i + 1 < t.len) {
      c = t.at[++i];
      if (c == 'n') c = '\n';
      if (c == 't') c = '\t';
    }
    out[n++] = c;
  }
  return (text){out, n};
}

#endif
