#!/usr/bin/env bash
# Builds the disk of a real guest that attests: Debian's cloud kernel, and an initramfs
# with busybox, Python and our agent in it. Everything comes from Debian packages, which
# are unpacked, never installed. Root, or sudo without a password, is needed only where the
# tools it is built with are missing, or apt's lists are stale.
#
#     tools/guest-image.sh [OUTPUT]      default: .data/guest/guest.img
set -euo pipefail
cd "$(dirname "$0")/.."

out=$(realpath -m "${1:-.data/guest/guest.img}")
PATH=$PATH:/usr/sbin:/sbin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
apt_get() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 -qq "$@"; }

missing=()
while read -r program package; do
    command -v "$program" >/dev/null || missing+=("$package")
done <<'NEEDED'
busybox busybox-static
mcopy mtools
mkfs.vfat dosfstools
syslinux syslinux
NEEDED
if [ ${#missing[@]} != 0 ]; then
    echo "guest-image: installing ${missing[*]}" >&2
    { apt_get update && apt_get install -y --no-install-recommends "${missing[@]}" >/dev/null; } || {
        echo "guest-image: ${missing[*]} missing; on Debian, as root:" \
            "apt-get update && apt-get install ${missing[*]}" >&2
        exit 1
    }
fi

# --- what it is made of ------------------------------------------------------------------

cd "$work"
fetch_kernel() {
    local kernel
    kernel=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
        awk '/Depends:/ {print $2; exit}')
    [ -n "$kernel" ] || { echo "guest-image: apt knows no cloud kernel" >&2; return 1; }
    # As root apt drops to its own user, who may not write here: it warns of that.
    apt-get -qq -o APT::Sandbox::User="$(id -un)" download "$kernel"
}
update_lists() {
    echo "guest-image: no kernel by apt's lists; updating them" >&2
    apt_get update
}
fetch_kernel || { update_lists && fetch_kernel; } || {
    echo "guest-image: the Debian kernel linux-image-cloud-amd64 can't be fetched, see" \
        "above. It takes a way to Debian's mirror and fresh lists; as root: apt-get" \
        "update" >&2
    exit 1
}
dpkg-deb -x ./*.deb kernel
modules=$(echo kernel/lib/modules/*/kernel)
cd "$OLDPWD"

root=$work/root
mkdir -p "$root"/{bin,dev,proc,sys,tmp,seed,lib/modules,usr/bin,usr/lib,agent}
cp "$(command -v busybox)" "$root/bin/busybox"
for name in drivers/virtio/{virtio_ring,virtio,virtio_pci_modern_dev,virtio_pci_legacy_dev,virtio_pci} \
    net/core/failover drivers/net/{net_failover,virtio_net} \
    drivers/scsi/{scsi_common,scsi_mod,virtio_scsi} drivers/cdrom/cdrom \
    drivers/scsi/sr_mod fs/isofs/isofs; do
    cp "$work/$modules/$name.ko" "$root/lib/modules/"
done

python=/usr/bin/python3
version=$($python -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
cp -L "$python" "$root/usr/bin/python3"
cp -r "/usr/lib/$version" "$root/usr/lib/"
rm -rf "$root/usr/lib/$version"/{test,idlelib,tkinter,ensurepip,lib2to3,distutils,config-*,__pycache__}
find "$root/usr/lib/$version" -name __pycache__ -prune -exec rm -rf {} +

# Copies the libraries that what is found under $1 is linked with.
libraries_of() {
    find "$1" -name '*.so' -o -name python3 | xargs ldd 2>/dev/null |
        awk '$2 == "=>" && $3 ~ /^\// {print $3} $1 ~ /^\/lib/ && NF == 2 {print $1}' |
        sort -u | while read -r library; do
        mkdir -p "$root$(dirname "$library")"
        [ -e "$root$library" ] || cp -L "$library" "$root$library"
    done
}
libraries_of "$root/usr"
cp -r trustfabric/__init__.py trustfabric/errors.py trustfabric/agent "$root/agent/" 
mkdir -p "$root/agent/trustfabric"
mv "$root/agent"/{__init__.py,errors.py,agent} "$root/agent/trustfabric/"
cp -r trustfabric/domain "$root/agent/trustfabric/"
site=$(.venv/bin/python -c 'import cryptography, pathlib; print(pathlib.Path(cryptography.__file__).parent.parent)')
for package in cryptography cffi _cffi_backend dcap_qvl; do
    for found in "$site/$package" "$site/$package".*.so "$site/$package"-*.dist-info; do
        [ -e "$found" ] && cp -r "$found" "$root/agent/"
    done
done
libraries_of "$root/agent"

# --- what it does ------------------------------------------------------------------------

cat >"$root/init" <<'INIT'
#!/bin/busybox sh
export PATH=/bin:/usr/bin PYTHONPATH=/agent PYTHONDONTWRITEBYTECODE=1
/bin/busybox --install -s /bin
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev
exec 0</dev/null 1>/dev/ttyS0 2>&1
for name in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci \
    failover net_failover virtio_net scsi_common scsi_mod virtio_scsi cdrom sr_mod isofs
do insmod "/lib/modules/$name.ko"; done
ip link set lo up; ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2
echo "GUEST-UP"
tries=0
until mount -t iso9660 -o ro /dev/sr0 /seed 2>/dev/null || [ $tries = 20 ]
do tries=$((tries + 1)); sleep 0.2; done
. /seed/user-data
echo "ENROLL $(python3 -m trustfabric.agent.main enroll)"
until wget -q -O /tmp/token "$TOKEN_URL"; do sleep 0.5; done
chmod 600 /tmp/token
echo "AGENT-STARTS"
python3 -m trustfabric.agent.main push --plain --token-file /tmp/token $AGENT "$RUNTIME_URL"
echo "AGENT-ENDED $?"
poweroff -f
INIT
chmod +x "$root/init"

# --- the disk ----------------------------------------------------------------------------

(cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$work/initrd.gz"
cat >"$work/syslinux.cfg" <<'CFG'
DEFAULT guest
PROMPT 0
TIMEOUT 1
LABEL guest
  KERNEL vmlinuz
  APPEND initrd=initrd.gz console=ttyS0 quiet panic=-1 random.trust_cpu=on tsc=reliable
CFG
mkdir -p "$(dirname "$out")"
rm -f "$work/disk.img"
truncate -s 128M "$work/disk.img"
mkfs.vfat -F 32 "$work/disk.img" >/dev/null
mcopy -i "$work/disk.img" "$work"/kernel/boot/vmlinuz-* ::vmlinuz
mcopy -i "$work/disk.img" "$work/initrd.gz" "$work/syslinux.cfg" ::
syslinux --install "$work/disk.img"
mv "$work/disk.img" "$out"
echo "$out"
