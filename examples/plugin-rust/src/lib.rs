//! A vendor for a JSON index of models: `shelf:NAME` is the model of that name in the index that the setting `index` names.

mod abi;
mod json;

use abi::{call_host, Error, Plugin};
use json::{parse, quote, Value};

/// What the plugin says about itself, as a section of the module: the host reads it before anything runs.
#[cfg_attr(target_arch = "wasm32", link_section = "apiary.manifest")]
#[used]
pub static SECTION: [u8; include_bytes!("../manifest.json").len()] = *include_bytes!("../manifest.json");

/// The section itself is not in the memory of the module.
const MANIFEST: &str = include_str!("../manifest.json");

#[derive(Default)]
struct Shelf {
    index: String,
}

export_plugin!(Shelf);

impl Plugin for Shelf {
    fn call(&mut self, method: &str, request: &str) -> Result<String, Error> {
        let request = parse(request).ok_or_else(|| Error::new("internal", "bad_request", "The request is not JSON."))?;
        match method {
            "/plugin.v1.Plugin/GetInfo" => own("info"),
            "/plugin.v1.Plugin/GetSchema" => own("schema"),
            "/plugin.v1.Plugin/Configure" => self.configure(request.get("configJson").text()),
            "/vendor.v1.Vendor/Resolve" => self.resolve(request.get("reference").text()),
            _ => Err(Error::new("invalid", "unimplemented", "The plugin does not have this method.")),
        }
    }
}

/// A part of the manifest.
fn own(part: &str) -> Result<String, Error> {
    let mut out = String::new();
    write(&mut out, parse(MANIFEST).unwrap_or(Value::Null).get(part));
    Ok(out)
}

fn write(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => out.push_str(n),
        Value::Text(s) => quote(out, s),
        Value::List(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write(out, item);
            }
            out.push(']');
        }
        Value::Object(members) => {
            out.push('{');
            for (i, (key, item)) in members.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                quote(out, key);
                out.push(':');
                write(out, item);
            }
            out.push('}');
        }
    }
}

impl Shelf {
    fn configure(&mut self, config: &str) -> Result<String, Error> {
        self.index = parse(config).unwrap_or(Value::Null).get("index").text().to_string();
        if self.index.is_empty() {
            let mut e = Error::new("invalid", "no_index", "The setting index must be the URL of an index of models.");
            e.json.insert_str(1, "\"param\":\"index\",");
            return Err(e);
        }
        Ok("{}".to_string())
    }

    fn resolve(&self, reference: &str) -> Result<String, Error> {
        let name = reference.strip_prefix("shelf:").unwrap_or(reference);
        let index = self.fetch()?;
        let models = index.get("models").list();
        let model = models.iter().find(|m| m.get("name").text() == name).ok_or_else(|| {
            Error::new("not_found", "model_not_found", &["The index has no model ", name, "; check its name."].concat())
        })?;
        let mut out = String::from("{\"reference\":");
        quote(&mut out, reference);
        out.push_str(",\"format\":");
        quote(&mut out, match model.get("format").text() { "" => "gguf", format => format });
        out.push_str(",\"files\":[");
        for (i, file) in model.get("files").list().iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            write_file(&mut out, file);
        }
        out.push_str("]}");
        Ok(out)
    }

    fn fetch(&self) -> Result<Value, Error> {
        let mut request = String::from("{\"method\":\"GET\",\"url\":");
        quote(&mut request, &self.index);
        request.push('}');
        let answer = call_host("/host.v1.Host/HttpDo", &request)?;
        let unreadable = || Error::new("unavailable", "no_index", "The index of models could not be read; check the setting index, or try again later.");
        let answer = std::str::from_utf8(&answer).ok().and_then(parse).ok_or_else(unreadable)?;
        if answer.get("status").text() != "200" {
            return Err(unreadable());
        }
        let body = call_host("/host.v1.Host/HttpBody", "")?;
        std::str::from_utf8(&body).ok().and_then(parse).ok_or_else(unreadable)
    }
}

fn write_file(out: &mut String, file: &Value) {
    let size = match file.get("size").text() { "" => "-1", size => size };
    out.push_str("{\"path\":");
    quote(out, file.get("path").text());
    out.push_str(",\"role\":\"weights\",\"size\":");
    quote(out, size);
    out.push_str(",\"sources\":[{\"ranges\":true,\"url\":");
    quote(out, file.get("url").text());
    out.push_str("}]");
    if !file.get("sha256").text().is_empty() {
        out.push_str(",\"digests\":{\"sha256\":");
        quote(out, file.get("sha256").text());
        out.push('}');
    }
    out.push('}');
}
