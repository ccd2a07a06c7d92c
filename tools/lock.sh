#!/usr/bin/env bash
# Writes the lock files anew from pyproject.toml: newest versions, every file's hash, no
# index address. Needs the environment of `make install`. Say --upgrade for newer versions.
set -euo pipefail
cd "$(dirname "$0")/.."

# What a machine adds to pip (local folders, caps) is no part of the lock.
unset PIP_FIND_LINKS PIP_CONSTRAINT PIP_EXTRA_INDEX_URL PIP_INDEX_URL
export PIP_CONFIG_FILE=/dev/null

compile() {
    .venv/bin/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe \
        --no-header --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
        --output-file "requirements/$1.txt" "${@:2}"
}

mkdir -p requirements
.venv/bin/python - >.venv/build.in <<'PY'
import tomllib
print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"]))
PY
.venv/bin/python - >.venv/dev.in <<'PY'
import tomllib
print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["dev"]))
PY
compile build .venv/build.in --no-annotate "$@"
compile runtime pyproject.toml --extra libvirt --extra ansible --extra embedded --no-annotate "$@"
compile dev .venv/dev.in -c requirements/build.txt -c requirements/runtime.txt --no-annotate "$@"
