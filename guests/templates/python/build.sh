#!/bin/sh
# Makes {{name}}.wasm of handler.py and what it imports.
set -e
cd "$(dirname "$0")"
componentize-py --wit-path wit --world connection-handler componentize --stub-wasi handler --output {{name}}.wasm
