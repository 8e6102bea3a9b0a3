#!/bin/sh
# Builds shelf.wasm with clang and wasm-ld, which Debian has as clang and lld. CLANG names another one.
set -eu
cd "$(dirname "$0")"
exec "${CLANG:-clang}" --target=wasm32 -std=c11 -Wall -Wextra -Werror -Os -ffreestanding -fno-builtin -nostdlib \
	-Wl,--no-entry -Wl,--strip-debug -Wl,-z,stack-size=65536 -o "${1:-shelf.wasm}" plugin.c
