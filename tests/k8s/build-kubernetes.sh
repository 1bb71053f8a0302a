#!/usr/bin/env bash
# Builds a real Kubernetes (control plane, kubelet, kube-proxy, kubectl, agnhost) from Debian's source package, and takes
# etcd from Debian's binary package, into a cache folder outside the clone. What is there already is not built again.
# Some ten minutes on two processors; shows its progress; says what it lacks.
#
# usage: build-kubernetes.sh [FOLDER]     default: ${XDG_CACHE_HOME:-$HOME/.cache}/weave-k8s
#
# A machine that is not Debian bookworm needs no build if somebody puts the programs into FOLDER/bin.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C DEBIAN_FRONTEND=noninteractive

cache=${1:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/weave-k8s}
bin=$cache/bin
suite=bookworm
go_package=golang-1.19-go
go=/usr/lib/go-1.19/bin/go
# kubectl and etcdctl are for people; the tests need the others.
from_source=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl agnhost)
from_package=(etcd)

started=$SECONDS
say() { printf '[%3ds] %s\n' "$((SECONDS - started))" "$*" >&2; }
lacks() { echo "build-kubernetes: $*" >&2; exit 1; }

missing() {
    local name
    for name in "$@"; do [ -x "$bin/$name" ] || echo "$name"; done
}

[ -z "$(missing "${from_source[@]}" "${from_package[@]}")" ] && exit 0

mkdir -p "$bin"
exec 9> "$cache/lock"
flock -n 9 || { say "another build is under way: waiting for it"; flock 9; }
mapfile -t todo < <(missing "${from_source[@]}" "${from_package[@]}")
[ "${#todo[@]}" = 0 ] && exit 0
say "building into $bin: ${todo[*]}"

command -v apt-get dpkg-deb >/dev/null || lacks "needs Debian's apt-get to fetch the source package \
\"kubernetes\" of $suite; elsewhere put ${todo[*]} (Kubernetes 1.20 or newer) into $bin"
room=$(df --output=avail -BG "$cache" | tail -1 | tr -dc 0-9)
[ "$room" -ge 6 ] || lacks "needs 6 GB of room in $cache, which has $room GB"

# Apt lists of its own, with the suite's sources: the machine's configuration stays as it is.
apt=$cache/apt
mirror() {
    # The machine's own mirror, so that a proxy or a local copy is used as everywhere else.
    { cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null || true; } |
        grep -v '^ *#' | grep -oE 'https?://[^ ]+/debian/?( |$)' | head -1 | tr -d ' '
}
prepare_apt() {
    [ -e "$apt/ready" ] && return
    local url
    url=$(mirror)
    [ -n "$url" ] || lacks "the machine's apt configuration names no mirror of Debian: add one (a line \`deb URL/debian \
$suite main\` in /etc/apt/sources.list), or put ${todo[*]} (Kubernetes 1.20 or newer) into $bin"
    mkdir -p "$apt/lists/partial" "$apt/archives/partial"
    printf 'Types: deb deb-src\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' \
        "$url" "$suite" /usr/share/keyrings/debian-archive-keyring.gpg > "$apt/debian.sources"
    say "reading the package lists of $suite from $url"
    own_apt -qq update || lacks "cannot read Debian's package lists from $url (network, proxy or keyring)"
    touch "$apt/ready"
}
own_apt() {
    apt-get -o Dir::Etc::SourceList="$apt/debian.sources" -o Dir::Etc::SourceParts=- -o Dir::State::Lists="$apt/lists" \
        -o Dir::Cache::Archives="$apt/archives" -o Dir::Cache::PkgCache= -o Dir::Cache::SrcPkgCache= \
        -o APT::Sandbox::User=root "$@" < /dev/null
}

if [ ! -x "$bin/etcd" ]; then
    prepare_apt
    say "etcd: unpacking Debian's etcd-server"
    (cd "$apt/archives" && rm -f etcd-*.deb && own_apt -qq download etcd-server etcd-client) || lacks "cannot fetch etcd-server"
    rm -rf "$cache/etcd"
    for package in "$apt"/archives/etcd-*.deb; do dpkg-deb -x "$package" "$cache/etcd"; done
    install -m 755 "$cache"/etcd/usr/bin/etcd* "$bin/"
    rm -rf "$cache/etcd"
fi

mapfile -t todo < <(missing "${from_source[@]}")
[ "${#todo[@]}" = 0 ] && { say "done"; exit 0; }

for tool in "dpkg-source dpkg-dev" "gcc gcc" "xz xz-utils" "patch patch"; do
    command -v "${tool% *}" > /dev/null || wanted="${wanted:-} ${tool#* }"
done
[ -x "$go" ] || wanted="${wanted:-} $go_package"
if [ -n "${wanted:-}" ]; then
    [ "$(id -u)" = 0 ] || lacks "missing:$wanted; run once as root to install them"
    say "installing:$wanted"
    # shellcheck disable=SC2086
    { apt-get -qq update && apt-get -qq install -y --no-install-recommends $wanted; } < /dev/null > /dev/null \
        || lacks "cannot install$wanted"
fi

export GOPATH=$cache/go GOCACHE=$cache/go-cache GO111MODULE=off CGO_ENABLED=0 GOFLAGS= GOTOOLCHAIN=local
# The compilers are short-lived: where there is memory, collecting their garbage is wasted time.
[ "$(awk '/^MemAvailable/ { print int($2 / 1048576) }' /proc/meminfo)" -lt 8 ] || export GOGC=400
tree=$GOPATH/src/k8s.io/kubernetes
if [ ! -e "$tree/.unpacked" ]; then
    prepare_apt
    say "fetching the source package (34 MB)"
    mkdir -p "$cache/source" "$(dirname "$tree")"
    (cd "$cache/source" && own_apt -qq source --download-only kubernetes) || lacks "cannot fetch the source package kubernetes"
    say "unpacking"
    rm -rf "$tree"
    dpkg-source --no-check --skip-debianization -x "$cache"/source/kubernetes_*.dsc "$tree" > /dev/null 2>&1 \
        || { rm -rf "$tree"; dpkg-source --no-check -x "$cache"/source/kubernetes_*.dsc "$tree" > /dev/null; }
    touch "$tree/.unpacked"
fi
cd "$tree"
version=v1.20.2
stamp=k8s.io/kubernetes/vendor/k8s.io/component-base/version
flags="-s -w -X $stamp.gitVersion=$version -X $stamp.gitMajor=1 -X $stamp.gitMinor=20"

# kube-apiserver compiles in the OpenAPI description, which is generated from marks in the sources.
if [ ! -e pkg/generated/openapi/zz_generated.openapi.go ]; then
    say "generating the OpenAPI file"
    "$go" build -o "$cache/openapi-gen" k8s.io/kubernetes/vendor/k8s.io/kube-openapi/cmd/openapi-gen
    packages=$(
        {
            grep -rl --include='*.go' -F '+k8s:openapi-gen=true' pkg cmd plugin 2>/dev/null | sed 's|^|k8s.io/kubernetes/|'
            grep -rl --include='*.go' -F '+k8s:openapi-gen=true' staging/src | sed 's|^staging/src/|k8s.io/kubernetes/vendor/|'
        } | grep -v -e _test.go -e /testdata/ | xargs -n1 dirname | sort -u | paste -sd,
    )
    "$cache/openapi-gen" -O zz_generated.openapi -h hack/boilerplate/boilerplate.generatego.txt \
        -p k8s.io/kubernetes/pkg/generated/openapi -i "$packages" -r "$cache/openapi-violations" 2> "$cache/openapi-gen.log" \
        || { tail -5 "$cache/openapi-gen.log" >&2; lacks "openapi-gen failed"; }
fi

# All in one go, so that one program is linked while another is compiled.
packages=()
for name in "${todo[@]}"; do
    case $name in
        agnhost) packages+=(k8s.io/kubernetes/test/images/agnhost) ;;
        *) packages+=("k8s.io/kubernetes/cmd/$name") ;;
    esac
done
say "compiling and linking ${#packages[@]} programs"
mkdir -p "$cache/built"
"$go" build -ldflags "$flags" -o "$cache/built/" "${packages[@]}" || lacks "cannot build ${todo[*]}"
mv "$cache"/built/* "$bin/" && rmdir "$cache/built"
# The programs are what is wanted; sources and Go's cache are two gigabytes.
chmod -R u+w "$GOPATH" && rm -rf "$GOPATH" "$GOCACHE" "$cache/source" "$cache"/openapi-* "$apt"
say "done: $(du -sh "$bin" | cut -f1) in $bin"
