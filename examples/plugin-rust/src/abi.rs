//! The ABI of Apiary's WASM plugins, version 1. A plugin implements `Plugin` and names it in `export_plugin!`.

use std::alloc::{alloc, dealloc, Layout};

/// An error for the user. `message` is one full sentence.
pub struct Error {
    pub json: String,
}

impl Error {
    pub fn new(kind: &str, code: &str, message: &str) -> Error {
        let mut json = String::from("{\"kind\":");
        crate::json::quote(&mut json, kind);
        json.push_str(",\"code\":");
        crate::json::quote(&mut json, code);
        json.push_str(",\"message\":");
        crate::json::quote(&mut json, message);
        json.push('}');
        Error { json }
    }
}

/// What a plugin does: it answers one method at a time, in JSON.
pub trait Plugin: Default {
    fn call(&mut self, method: &str, request: &str) -> Result<String, Error>;
}

#[cfg(target_arch = "wasm32")]
mod host {
    #[link(wasm_import_module = "apiary_v1")]
    extern "C" {
        pub fn call(method: *const u8, method_len: usize, request: *const u8, request_len: usize) -> i64;
        pub fn reply(into: *mut u8);
    }
}

/// Without a host there is nobody to ask: the tests of a plugin run on the machine itself.
#[cfg(not(target_arch = "wasm32"))]
mod host {
    pub unsafe fn call(_: *const u8, _: usize, _: *const u8, _: usize) -> i64 {
        0
    }
    pub unsafe fn reply(_: *mut u8) {}
}

/// Calls a method of the host and returns its answer: JSON, or the bytes of a body.
pub fn call_host(method: &str, request: &str) -> Result<Vec<u8>, Error> {
    // The host reads both texts during the call and keeps no pointer.
    let n = unsafe { host::call(method.as_ptr(), method.len(), request.as_ptr(), request.len()) };
    let mut answer = vec![0; n.unsigned_abs() as usize];
    if !answer.is_empty() {
        // The host writes as many bytes as it said.
        unsafe { host::reply(answer.as_mut_ptr()) };
    }
    if n >= 0 {
        return Ok(answer);
    }
    Err(Error { json: String::from_utf8_lossy(&answer).into_owned() })
}

/// Memory for the host carries its size in front of it, because the host frees by pointer alone.
const HEADER: usize = 8;

pub fn allocate(size: usize) -> *mut u8 {
    let Some(whole) = size.checked_add(HEADER) else { return std::ptr::null_mut() };
    let Ok(layout) = Layout::from_size_align(whole, HEADER) else { return std::ptr::null_mut() };
    unsafe {
        let p = alloc(layout);
        if p.is_null() {
            return p;
        }
        (p as *mut usize).write(whole);
        p.add(HEADER)
    }
}

/// # Safety
/// `p` comes from `allocate` and is not freed yet.
pub unsafe fn release(p: *mut u8) {
    if !p.is_null() {
        let p = p.sub(HEADER);
        dealloc(p, Layout::from_size_align_unchecked((p as *mut usize).read(), HEADER));
    }
}

pub fn answer<P: Plugin>(plugin: &mut P, method: &[u8], request: &[u8]) -> u64 {
    let result = match (std::str::from_utf8(method), std::str::from_utf8(request)) {
        (Ok(method), Ok(request)) => plugin.call(method, request),
        _ => Err(Error::new("internal", "bad_request", "The request is not UTF-8.")),
    };
    let (status, text) = match &result {
        Ok(reply) => (0, reply.as_bytes()),
        Err(error) => (1, error.json.as_bytes()),
    };
    let p = allocate(1 + text.len());
    assert!(!p.is_null());
    unsafe {
        p.write(status);
        p.add(1).copy_from_nonoverlapping(text.as_ptr(), text.len());
    }
    (p as u64) << 32 | (1 + text.len()) as u64
}

/// Exports the functions of the ABI for a plugin.
#[macro_export]
macro_rules! export_plugin {
    ($plugin:ty) => {
        thread_local! {
            static PLUGIN: std::cell::RefCell<$plugin> = std::cell::RefCell::default();
        }

        #[no_mangle]
        pub extern "C" fn apiary_abi_v1() -> u32 {
            0
        }

        #[no_mangle]
        pub extern "C" fn apiary_alloc(size: usize) -> *mut u8 {
            $crate::abi::allocate(size)
        }

        #[no_mangle]
        pub unsafe extern "C" fn apiary_free(p: *mut u8) {
            $crate::abi::release(p)
        }

        #[no_mangle]
        pub unsafe extern "C" fn apiary_invoke(method: *const u8, method_len: usize, request: *const u8, request_len: usize) -> u64 {
            let read = |p, n| if n == 0 { &[][..] } else { std::slice::from_raw_parts(p, n) };
            PLUGIN.with(|p| $crate::abi::answer(&mut *p.borrow_mut(), read(method, method_len), read(request, request_len)))
        }
    };
}
