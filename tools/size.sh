#!/usr/bin/env bash
# Fails on a Python module of more than 400 lines: it has more than one reason to exist.
set -euo pipefail
cd "$(dirname "$0")/.."

long=$(find trustfabric tests benchmarks -name '*.py' -exec wc -l {} + |
    awk '$2 != "total" && $1 > 400 { printf "%s: %d lines, at most 400\n", $2, $1 }')
[ -z "$long" ] || { printf '%s\n' "$long"; exit 1; }
