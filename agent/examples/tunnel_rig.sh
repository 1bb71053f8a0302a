#!/usr/bin/env bash
# Two nodes joined by a veth pair, a pod behind each; a sleeve tunnel (examples/tunnel_rig.rs) and a hand-made VXLAN side by side.
#   tunnel_rig.sh up [suite] [queues]    lay the namespaces and start both ends
#   tunnel_rig.sh tcp [rounds] [seconds] [iperf3 options]     one after the other, ratio of the medians
#   tunnel_rig.sh udp [rounds] [seconds] a flood of 1200-byte datagrams
#   tunnel_rig.sh ping                   idle round trips
#   tunnel_rig.sh loaded                 round trips while a TCP stream saturates the path
#   tunnel_rig.sh offload on|off         segmentation of tunnels by the underlay's devices
#   tunnel_rig.sh down
# TUNNEL_RIG is the binary (default: target/release/examples/tunnel_rig), CARRIER what carries: udp or quic. Needs root, iproute2, iperf3, ping.
set -euo pipefail
binary=${TUNNEL_RIG:-target/release/examples/tunnel_rig}
carrier=${CARRIER:-udp}
state=/tmp/sl-state
mtu=${SLEEVE_MTU:-1500}

in_a() { ip netns exec sl-pa "$@"; }
in_b() { ip netns exec sl-pb "$@"; }

down() {
    if [ -f "$state/pids" ]; then while read -r pid; do kill "$pid" 2>/dev/null || true; done <"$state/pids"; fi
    for each in sl-pa sl-pb sl-a sl-b; do ip netns del $each 2>/dev/null || true; done
    rm -rf "$state"
}

vxlan() { # namespace, own, peer, own MAC digit, peer MAC digit
    ip -n "$1" link add sl-vx type vxlan id 6784 dstport 6784 local "192.168.77.$2" dev veth0 nolearning
    ip -n "$1" link set sl-vx address "02:00:00:00:01:0$2" mtu $((mtu - 50)) up
    ip -n "$1" addr add "10.40.0.$2/24" dev sl-vx
    ip -n "$1" neigh add "10.40.0.$3" lladdr "02:00:00:00:01:0$3" dev sl-vx nud permanent
    bridge -n "$1" fdb append "02:00:00:00:01:0$3" dev sl-vx dst "192.168.77.$3"
}

pod() { # side, own digit, peer's digit: a namespace behind the node, with an address for each tunnel
    ip netns add "sl-p$1"
    ip -n "sl-p$1" link set lo up
    ip -n "sl-$1" link add pod0 mtu "$mtu" type veth peer name eth0 mtu "$mtu" netns "sl-p$1"
    ip -n "sl-$1" link set pod0 up
    ip -n "sl-p$1" link set eth0 up
    ip netns exec "sl-$1" sysctl -qw net.ipv4.ip_forward=1
    for net in 32 40; do
        ip -n "sl-p$1" addr add "10.$net.$2.2/32" dev eth0
        ip -n "sl-$1" addr add "10.$net.$2.1/32" dev pod0
        ip -n "sl-$1" route add "10.$net.$2.2/32" dev pod0
        ip -n "sl-p$1" route add "10.$net.$2.1/32" dev eth0
        ip -n "sl-p$1" route add "10.$net.$3.0/24" via "10.$net.$2.1" src "10.$net.$2.2" mtu $((net == 32 ? mtu - 60 : mtu - 50))
    done
    ip -n "sl-$1" route add "10.40.$3.0/24" via "10.40.0.$3" dev sl-vx
    ip -n "sl-$1" route add "10.32.$3.0/24" dev weave-tun
}

end() { # namespace, own, peer
    ip netns exec "$1" "$binary" "$2" weave-tun $((mtu - 28)) "$queues" "$suite" \
        "$3,192.168.77.$3,$carrier,10.32.0.$3/32,10.32.$3.0/24" >"$state/$1.log" 2>&1 &
    echo $! >>"$state/pids"
    for _ in $(seq 100); do grep -q ready "$state/$1.log" && break; sleep 0.05; done
    ip -n "$1" link set weave-tun mtu $((mtu - 60)) txqueuelen "${SLEEVE_TXQ:-500}" up
    ip -n "$1" addr add "10.32.0.$2/32" dev weave-tun
    ip -n "$1" route add "10.32.0.$3/32" dev weave-tun src "10.32.0.$2"
}

up() {
    suite=${1:-aes128} queues=${2:-1}
    down
    mkdir -p "$state"
    ip netns add sl-a
    ip netns add sl-b
    ip -n sl-a link add veth0 mtu "$mtu" type veth peer name veth0 netns sl-b
    ip -n sl-b link set veth0 mtu "$mtu"
    for each in a:1 b:2; do
        ip -n "sl-${each%:*}" addr add "192.168.77.${each#*:}/24" dev veth0
        ip -n "sl-${each%:*}" link set veth0 up
        ip -n "sl-${each%:*}" link set lo up
    done
    vxlan sl-a 1 2
    vxlan sl-b 2 1
    end sl-a 1 2
    end sl-b 2 1
    pod a 1 2
    pod b 2 1
    if [ "$carrier" = quic ]; then
        for _ in $(seq 100); do grep -q 'largest: 14' "$state/sl-a.log" && break; sleep 0.05; done
    fi
    for address in 10.32.2.2 10.40.2.2; do
        in_b iperf3 -s -D -B "$address" -p 5201 --pidfile "$state/iperf-$address.pid" >/dev/null
        for _ in $(seq 100); do [ -s "$state/iperf-$address.pid" ] && break; sleep 0.05; done
        tr -d '\0' <"$state/iperf-$address.pid" >>"$state/pids"; echo >>"$state/pids"
        in_a ping -c 1 -W 2 "$address" >/dev/null || echo "no answer from $address" >&2
    done
}

gbps() { python3 -c 'import json,sys; r=json.load(sys.stdin)["end"]; s=r.get("sum_received") or r["sum"]; print("%.2f"%(s["bits_per_second"]/1e9), end=" "); print("%.0f%%"%s["lost_percent"] if "lost_percent" in s else "", end=" ")'; }

compare() { # rounds, seconds, iperf3 options
    rounds=$1 seconds=$2; shift 2
    : >"$state/runs"
    for _ in $(seq "$rounds"); do
        for address in 10.40.2.2 10.32.2.2; do
            in_a iperf3 -c "$address" -t "$seconds" -J "$@" >"$state/run.json" || true
            echo "$address $(gbps <"$state/run.json")" >>"$state/runs"
        done
    done
    python3 - "$state/runs" <<'P'
import sys, statistics
runs = {}
for line in open(sys.argv[1]):
    address, rate, *rest = line.split()
    runs.setdefault(address, []).append((float(rate), *rest))
median = {a: statistics.median(r[0] for r in rs) for a, rs in runs.items()}
for a, rs in runs.items(): print("vxlan " if "40" in a[:5] else "sleeve", " ".join(" ".join(map(str, r)) for r in rs))
print("ratio %.3f" % (median["10.32.2.2"] / median["10.40.2.2"]))
P
}

case ${1:-} in
up) shift; up "$@" ;;
down) down ;;
tcp) shift; compare "${1:-5}" "${2:-3}" "${@:3}" ;;
udp) shift; compare "${1:-3}" "${2:-3}" -u -l 1200 -b 0 "${@:3}" ;;
ping) for round in 1 2 3; do for address in 10.40.2.2 10.32.2.2; do
        echo "$address $(in_a ping -q -i 0.005 -c 400 "$address" | tail -1)"; done; done ;;
loaded) for address in 10.40.2.2 10.32.2.2; do
        in_a iperf3 -c "$address" -t 6 >/dev/null & load=$!
        sleep 1
        in_a ping -i 0.01 -c 400 "$address" | grep -o 'time=[0-9.]*' | cut -d= -f2 | sort -n |
            awk -v a="$address" '{t[NR]=$1} END {print a, "p50", t[int(NR/2)], "p99", t[int(NR*0.99)], "max", t[NR]}'
        wait $load; done ;;
offload) for each in sl-a sl-b; do
        ip netns exec $each ethtool -K veth0 tx-udp-segmentation "$2" tx-udp_tnl-segmentation "$2" tx-udp_tnl-csum-segmentation "$2"; done ;;
*) sed -n '2,11p' "$0"; exit 1 ;;
esac
