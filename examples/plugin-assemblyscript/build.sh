#!/bin/sh
# Builds shelf.wasm with asc, which `npm install` brings; ASC names another one. The manifest is not in the module yet.
set -eu
out="${1:-$(dirname "$0")/shelf.wasm}"
case "$out" in /*) ;; *) out="$PWD/$out" ;; esac
cd "$(dirname "$0")"
# The manifest is also what the plugin answers about itself.
{
	printf '// Made from manifest.json by build.sh.\nexport const MANIFEST: string = `'
	cat manifest.json
	printf '`;\n'
} >assembly/manifest.ts
exec "${ASC:-node_modules/.bin/asc}" assembly/index.ts -O2 --runtime incremental --noAssert \
	--use abort=assembly/abi/abort --outFile "$out"
