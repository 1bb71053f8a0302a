#!/usr/bin/env bash
# Writes an OCI archive with one image, the sandbox ("pause") of every pod in the tests: a static busybox that sleeps.
# usage: sandbox-image.sh ARCHIVE NAME
set -euo pipefail

archive=$1 name=$2
busybox=$(command -v busybox)
if ldd "$busybox" >/dev/null 2>&1; then
    echo "$busybox needs libraries, which the image has none of: install busybox-static" >&2
    exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Puts a file into the blob store under its digest; prints "sha256:…" and the size.
blob() {
    local digest
    digest=$(sha256sum "$1" | cut -d' ' -f1)
    mkdir -p "$work/oci/blobs/sha256"
    cp "$1" "$work/oci/blobs/sha256/$digest"
    echo "sha256:$digest" "$(stat -c %s "$1")"
}

mkdir -p "$work/root/bin" "$work/root/tmp"
cp "$busybox" "$work/root/bin/busybox"
for applet in sh sleep nc wget ping httpd ip cat; do ln -s busybox "$work/root/bin/$applet"; done
tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$work/root" -cf "$work/layer.tar" .
read -r layer layer_size < <(blob "$work/layer.tar")

printf '{"architecture":"%s","os":"linux","config":{"Entrypoint":["/bin/sleep","2147483647"]},"rootfs":{"type":"layers","diff_ids":["%s"]}}' \
    "$(dpkg --print-architecture)" "$layer" > "$work/config.json"
read -r config config_size < <(blob "$work/config.json")

printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"%s","size":%s}]}' \
    "$config" "$config_size" "$layer" "$layer_size" > "$work/manifest.json"
read -r manifest manifest_size < <(blob "$work/manifest.json")

printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"%s","size":%s,"annotations":{"io.containerd.image.name":"%s"}}]}' \
    "$manifest" "$manifest_size" "$name" > "$work/oci/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' > "$work/oci/oci-layout"
tar -C "$work/oci" -cf "$archive" .
