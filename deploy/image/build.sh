#!/usr/bin/env bash
# Makes the image of weave offline, from binaries that were built here and from Debian's packages that are installed
# here, without a registry: weave, its CNI plugin, nft, iptables and the libraries that these need. Nothing else is
# inside, no shell either. deploy/image/Dockerfile makes the same from a registry's base image.
# usage: build.sh FOLDER-OF-BINARIES ARCHIVE [NAME:TAG]
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
binaries=$1 archive=$2
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/../../Cargo.toml" | head -1)
name=${3:-weave-net:$version}
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"

for binary in weave weave-net; do
    [ -x "$binaries/$binary" ] || { echo "$binaries/$binary is missing: run \`make build\`" >&2; exit 1; }
    install -D -s -m 755 "$binaries/$binary" "$root/usr/bin/$binary"
done

# One copy of a program for all its names.
program() {
    local file
    file=$(readlink -f "$(command -v "$1" || { echo "$1 is missing: run \`make tools\`" >&2; exit 1; })")
    install -D -m 755 "$file" "$root/usr/sbin/$(basename "$file")"
    [ "$(basename "$file")" = "$1" ] || ln -s "$(basename "$file")" "$root/usr/sbin/$1"
}
program nft
for variant in nft legacy; do
    program "iptables-$variant"
    # One program under other names.
    for verb in save restore; do ln -s "xtables-$variant-multi" "$root/usr/sbin/iptables-$variant-$verb"; done
done
ln -s xtables-nft-multi "$root/usr/sbin/iptables"

# iptables loads the matches and targets of whatever rules it finds.
extensions=$(dirname "$(find /usr/lib /lib -name libxt_comment.so -print -quit)")
mkdir -p "$root$extensions"
cp "$extensions"/lib{xt,ipt}_*.so "$root$extensions/"

libraries() { ldd "$@" 2>/dev/null | grep -oE '/[^ ]+\.so[^ ]*' | sort -u; }
libraries "$root"/usr/bin/* "$root"/usr/sbin/* | while read -r library; do
    install -D -m 644 "$(readlink -f "$library")" "$root$library"
done
chmod 755 "$root"/lib*/ld-linux* "$root"/lib/*/ld-linux* 2>/dev/null || true

# Mount points: the root file system is read-only when it runs.
mkdir -p "$root"/{etc/cni/net.d,opt/cni/bin,run/weave,var/lib/weave,dev,proc,sys,host/proc/sys/net}
ln -s ../run "$root/var/run"
touch "$root/etc/machine-id" "$root/run/xtables.lock"
printf 'root:x:0:0:root:/:/nonexistent\n' > "$root/etc/passwd"
printf 'hosts: files dns\n' > "$root/etc/nsswitch.conf"

"$here/archive.sh" "$root" "$archive" "$name" /usr/bin/weave
echo "$archive: $name, $(du -b "$archive" | awk '{ printf "%.1f MB", $1 / 1e6 }')" \
    "($(find "$root" -type f | wc -l) files; $(gzip -c "$archive" | wc -c | awk '{ printf "%.1f MB", $1 / 1e6 }') compressed)"
