#!/usr/bin/env bash
# Packs a folder as the one layer of a container image, in the form of `docker save`: `docker load`, `podman load` and
# `ctr images import` read it. The same folder makes the same bytes.
# usage: archive.sh FOLDER ARCHIVE NAME:TAG PROGRAM [ARGUMENT...]
set -euo pipefail
export LC_ALL=C

folder=$1 archive=$2 name=$3
shift 3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$folder" -cf "$work/layer.tar" .
layer=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
mkdir "$work/$layer"
mv "$work/layer.tar" "$work/$layer/layer.tar"

architecture=$(dpkg --print-architecture 2>/dev/null || uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')
entrypoint=$(printf '"%s",' "$@")
printf '{"architecture":"%s","os":"linux","config":{"Entrypoint":[%s],"Env":["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$architecture" "${entrypoint%,}" "$layer" > "$work/config.json"
config=$(sha256sum "$work/config.json" | cut -d' ' -f1)
mv "$work/config.json" "$work/$config.json"
printf '[{"Config":"%s.json","RepoTags":["%s"],"Layers":["%s/layer.tar"]}]' "$config" "$name" "$layer" > "$work/manifest.json"

tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$work" -cf "$archive.new" manifest.json "$config.json" "$layer"
mv "$archive.new" "$archive"
