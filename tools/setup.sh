#!/usr/bin/env bash
# Sets up what is missing and nothing else: system packages, .venv, the locked packages,
# the product itself. Quick where all is there. Writes to the checkout and to the package
# managers' own places only.
#
#     tools/setup.sh runtime      what running takes
#     tools/setup.sh dev          that, and what checking and testing take
set -euo pipefail
cd "$(dirname "$0")/.."

kind=${1:-dev}
venv=$PWD/.venv

say() { printf '%s\n' "setup: $*" >&2; }
die() { printf '%s\n' "$@" >&2; exit 1; }
have() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1; }

# --- Python ----------------------------------------------------------------------------

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local name
    for name in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if have "$name" && new_enough "$name"; then
            command -v "$name"
            return
        fi
    done
    name=${PYTHON:-python3}
    die "trustfabric needs Python 3.11 or newer; $name is" \
        "$(if have "$name"; then "$name" --version 2>&1 || true; else echo "not there"; fi)" \
        "Debian 12, Ubuntu 24.04 and newer have it as python3; on Ubuntu 22.04:" \
        "    apt-get install python3.11 python3.11-venv python3.11-dev" \
        "Then: make install PYTHON=python3.11"
}

# --- system packages -------------------------------------------------------------------
# Each is asked for by what it gives, so that what came some other way counts too.

missing_packages() {
    local name=python3
    [ "$(command -v python3)" = "$python" ] || name=$(basename "$python")
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo "$name-venv"
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
        echo "$name-dev"
    have gcc || echo gcc libc6-dev
    have pkg-config || echo pkg-config
    have pkg-config && pkg-config --exists libvirt || echo libvirt-dev
    have swtpm || echo swtpm
    have swtpm_setup || echo swtpm-tools
    have bwrap || echo bubblewrap
    have curl || echo curl
    # PostgreSQL never runs as root: it needs a user namespace, or this package's account.
    [ "$(id -u)" != 0 ] || id postgres >/dev/null 2>&1 ||
        unshare --user true 2>/dev/null || echo postgresql-common
    [ "$kind" = dev ] || return 0
    have as || echo binutils
    have tpm2_checkquote || echo tpm2-tools
    have qemu-system-x86_64 || echo qemu-system-x86
    [ -d /usr/share/seabios ] || echo seabios
    have qemu-img || echo qemu-utils
    have libvirtd || echo libvirt-daemon
    compgen -G '/usr/lib*/**/libvirt/connection-driver/libvirt_driver_qemu.so' >/dev/null ||
        compgen -G '/usr/lib*/libvirt/connection-driver/libvirt_driver_qemu.so' >/dev/null ||
        echo libvirt-daemon-driver-qemu
    have saslpasswd2 || echo sasl2-bin
    compgen -G '/usr/lib/*/sasl2/libscram.so*' >/dev/null || echo libsasl2-modules
    # Ubuntu's chromium is a snap, which containers can't run: its one test is skipped.
    have chromium || grep -q '^ID=ubuntu' /etc/os-release 2>/dev/null || echo chromium
}

install_packages() {
    local wanted=("$@") as_root=()
    local apt=(apt-get -o DPkg::Lock::Timeout=600)
    local command="apt-get update && apt-get install -y --no-install-recommends ${wanted[*]}"
    have apt-get || die "These system packages are missing (in Debian's names):" \
        "    ${wanted[*]}" "Install them, then run this again."
    if [ "$(id -u)" != 0 ]; then
        { have sudo && { sudo -n true 2>/dev/null || [ -t 0 ]; }; } ||
            die "System packages are missing. As root, run:" "    $command" \
                "then run this again."
        as_root=(sudo env)
    else
        as_root=(env)
    fi
    say "installing ${wanted[*]}"
    { "${as_root[@]}" DEBIAN_FRONTEND=noninteractive "${apt[@]}" -qq update &&
        "${as_root[@]}" DEBIAN_FRONTEND=noninteractive \
            "${apt[@]}" -qq install -y --no-install-recommends "${wanted[@]}" >/dev/null
    } || die "" "setup: apt-get failed, see above; it needs a way to its mirror." \
        "To install by hand, as root:" "    $command"
}

# --- the environment -------------------------------------------------------------------
# A stamp holds the digest of what it stands for: a changed lock file installs anew.

digest() { { "$venv/bin/python" --version; cat "$@"; } | sha256sum | cut -d' ' -f1; }
stamped() { [ "$(cat "$venv/.stamp-$1" 2>/dev/null)" = "$2" ]; }
stamp() { printf '%s\n' "$2" >"$venv/.stamp-$1"; }

# Whole, and made for this place: scripts in it name the folder they were made in.
venv_stands() {
    new_enough "$venv/bin/python" && [ -x "$venv/bin/pip" ] &&
        grep -qF "$venv" "$venv/bin/activate"
}

pip_install() {
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check \
        --no-build-isolation "$@" ||
        die "" "setup: pip failed, see above; it needs a way to the package index." \
            "What is done is kept: run this again to go on."
}

install_locked() {
    local files=(requirements/build.txt requirements/runtime.txt) file arguments=()
    local runtime dev
    runtime=$(digest "${files[@]}")
    dev=$(digest "${files[@]}" requirements/dev.txt)
    if stamped packages "$dev" || { [ "$kind" = runtime ] && stamped packages "$runtime"; }
    then
        return
    fi
    [ "$kind" = runtime ] || files+=(requirements/dev.txt)
    say "installing the locked Python packages"
    # Without looking for dependencies: the lock has them all, and pip would look at newer
    # versions of what somebody wants with an extra, and fail on those as not locked.
    pip_install --no-deps --require-hashes -r requirements/build.txt
    for file in "${files[@]}"; do arguments+=(-r "$file"); done
    pip_install --no-deps --require-hashes "${arguments[@]}"
    stamp packages "$(digest "${files[@]}")"
}

install_product() {
    local product
    product=$(digest pyproject.toml <(echo "$PWD"))
    stamped product "$product" && return
    say "installing trustfabric"
    pip_install --no-deps --editable .
    "$venv/bin/python" -m pip check >&2 || die "setup: the lock lacks what this says"
    stamp product "$product"
}

case $kind in runtime | dev) ;; *) die "usage: tools/setup.sh runtime|dev" ;; esac
python=$(find_python)
mapfile -t missing < <(missing_packages)
if [ ${#missing[@]} != 0 ]; then
    read -ra missing <<<"${missing[*]}"
    install_packages "${missing[@]}"
fi
if ! venv_stands; then
    say "making .venv with $python"
    "$python" -m venv --clear "$venv"
fi
install_locked
install_product
