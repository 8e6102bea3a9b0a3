#!/bin/sh
# Builds shelf.wasm with cargo. The toolchain needs the standard library for wasm32-unknown-unknown: `rustup target add
# wasm32-unknown-unknown`, or Debian's libstd-rust-dev-wasm32.
set -eu
cd "$(dirname "$0")"
target="${CARGO_TARGET_DIR:-target}"
# Paths of the machine that builds would be in the texts of panics.
export RUSTFLAGS="--remap-path-prefix=$HOME=home --remap-path-prefix=$PWD=."
cargo build --quiet --release --locked --offline --target wasm32-unknown-unknown
cp "$target/wasm32-unknown-unknown/release/shelf.wasm" "${1:-shelf.wasm}"
