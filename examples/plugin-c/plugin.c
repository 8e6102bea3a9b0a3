/* A vendor for a JSON index of models: "shelf:NAME" is the model of that name in the index that the setting "index" names. */
#include "apiary.h"
#include "json.h"

/* The manifest is a section of the module, which the host reads before anything runs, and the answer to GetInfo and GetSchema. */
extern const u8 manifest_start[], manifest_end[];
__asm__(".section .rodata.manifest,\"\",@\n"
        ".globl manifest_start\nmanifest_start:\n.incbin \"manifest.json\"\n.size manifest_start, . - manifest_start\n"
        ".globl manifest_end\nmanifest_end:\n.int8 0\n.size manifest_end, 1\n"
        ".section .custom_section.apiary.manifest,\"\",@\n"
        ".incbin \"manifest.json\"\n");

static text manifest(void) { return (text){manifest_start, (u32)(manifest_end - manifest_start)}; }

/* The setting, as it stands inside its quotes. It outlives calls, so it has memory of its own. */
static u8 index_url[1024];
static u32 index_url_len;

static void configure(text request) {
  text url = inside(member(unescape(inside(member(request, TEXT("configJson")))), TEXT("index")));
  if (url.len == 0 || url.len > sizeof index_url) {
    fail("invalid", "no_index");
    put(TEXT("The setting index must be the URL of an index of models.\",\"param\":\"index\"}"));
    return;
  }
  for (u32 i = 0; i < url.len; i++) index_url[i] = url.at[i];
  index_url_len = url.len;
  put(TEXT("{}"));
}

/* get fetches the index. It returns 0 when it wrote an error. */
static int get(text *body) {
  int ok;
  put(TEXT("{\"method\":\"GET\",\"url\":\""));
  put((text){index_url, index_url_len});
  put(TEXT("\"}"));
  text request = {reply_at + 1, reply_len - 1}; /* behind the status byte */
  text answer = host(TEXT("/host.v1.Host/HttpDo"), request, &ok);
  if (!ok) {
    pass_on(answer);
    return 0;
  }
  if (!same(member(answer, TEXT("status")), TEXT("200"))) {
    fail("unavailable", "no_index");
    put(TEXT("The index of models could not be read; check the setting index, or try again later.\"}"));
    return 0;
  }
  *body = host(TEXT("/host.v1.Host/HttpBody"), TEXT(""), &ok);
  if (!ok) pass_on(*body);
  return ok;
}

static void put_file(text file) {
  text digest = member(file, TEXT("sha256")), size = member(file, TEXT("size"));
  put(TEXT("{\"path\":"));
  put(member(file, TEXT("path")));
  put(TEXT(",\"role\":\"weights\",\"size\":\""));
  put(size.len ? size : TEXT("-1"));
  put(TEXT("\",\"sources\":[{\"ranges\":true,\"url\":"));
  put(member(file, TEXT("url")));
  put(TEXT("}]"));
  if (digest.len) {
    put(TEXT(",\"digests\":{\"sha256\":"));
    put(digest);
    put(TEXT("}"));
  }
  put(TEXT("}"));
}

static void put_manifest(text reference, text model) {
  text format = member(model, TEXT("format")), file;
  text files = inside(member(model, TEXT("files")));
  put(TEXT("{\"reference\":\""));
  put(reference);
  put(TEXT("\",\"format\":"));
  put(format.len ? format : TEXT("\"gguf\""));
  put(TEXT(",\"files\":["));
  for (int first = 1; next(&files, &file); first = 0) {
    if (!first) put(TEXT(","));
    put_file(file);
  }
  put(TEXT("]}"));
}

static void resolve(text request) {
  text reference = inside(member(request, TEXT("reference"))), name = skip(reference, sizeof "shelf:" - 1), body, model;
  if (!get(&body)) return;
  reply_len = 0;
  put((text){(const u8 *)"\0", 1});
  text models = inside(member(body, TEXT("models")));
  while (next(&models, &model)) {
    if (!same(inside(member(model, TEXT("name"))), name)) continue;
    put_manifest(reference, model);
    return;
  }
  fail("not_found", "model_not_found");
  put(TEXT("The index has no model "));
  put(name);
  put(TEXT("; check its name.\"}"));
}

void apiary_handle(text method, text request) {
  if (same(method, TEXT("/plugin.v1.Plugin/GetInfo"))) {
    put(member(manifest(), TEXT("info")));
  } else if (same(method, TEXT("/plugin.v1.Plugin/GetSchema"))) {
    put(member(manifest(), TEXT("schema")));
  } else if (same(method, TEXT("/plugin.v1.Plugin/Configure"))) {
    configure(request);
  } else if (same(method, TEXT("/vendor.v1.Vendor/Resolve"))) {
    resolve(request);
  } else {
    fail("invalid", "unimplemented");
    put(TEXT("The plugin does not have this method.\"}"));
  }
}
