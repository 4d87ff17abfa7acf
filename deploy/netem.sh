#!/bin/sh
# Puts a link on a real network interface, as outrider-link does on one machine: for everything that
# passes through it, an SSH session too. On the edge machine; needs root.
#
#     deploy/netem.sh start INTERFACE --profile NAME [--loss-burst BEGIN:END]
#     deploy/netem.sh start INTERFACE [--rtt TIME] [--jitter TIME] [--up RATE] [--down RATE] ...
#     deploy/netem.sh status INTERFACE
#     deploy/netem.sh stop INTERFACE
#
# What leaves the interface gets the link up; what enters goes through an ifb device and gets the
# link down. PYTHON names the interpreter, else .venv/bin/python, else python3.
set -eu

ifb="ifb-outrider"

fail() {
    echo "netem.sh: $1" >&2
    exit "${2:-2}"
}

usage="usage: deploy/netem.sh start|stop|status INTERFACE [--profile NAME | --rtt TIME ...]"
[ $# -ge 2 ] || fail "$usage"
command=$1
interface=$2
shift 2
case $command in
    start) ;;
    stop | status) [ $# -eq 0 ] || fail "$command takes an interface alone; leave out $*" ;;
    *) fail "there is no '$command'; $usage" ;;
esac

if [ "$command" = start ]; then
    here=$(cd "$(dirname "$0")/.." && pwd)
    python=${PYTHON:-$here/.venv/bin/python}
    [ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
    link=$(cd "$here" && "$python" -m edge_client.relay.netem "$@") || exit 2
fi

command -v tc >/dev/null || fail "tc is not here; install iproute2" 1
ip link show dev "$interface" >/dev/null 2>&1 || fail "there is no interface '$interface'"

status() {
    tc -s qdisc show dev "$interface"
    if ip link show dev "$ifb" >/dev/null 2>&1; then
        tc -s qdisc show dev "$ifb"
    fi
}

stop() {
    tc qdisc del dev "$interface" root 2>/dev/null || true
    tc qdisc del dev "$interface" ingress 2>/dev/null || true
    ip link del "$ifb" 2>/dev/null || true
}

# try WHAT COMMAND...: takes everything back when the command fails.
try() {
    what=$1
    shift
    if ! said=$("$@" 2>&1); then
        stop
        fail "$what: ${said:-no reason given}; nothing is left of the link" 1
    fi
}

if [ "$command" = status ]; then
    status
    exit 0
fi
[ "$(id -u)" -eq 0 ] || fail "only root may change an interface; use sudo" 1
if [ "$command" = stop ]; then
    stop
    exit 0
fi
! ip link show dev "$ifb" >/dev/null 2>&1 || fail "a link is there already; stop it first"

up=$(echo "$link" | sed -n 's/^up //p')
down=$(echo "$link" | sed -n 's/^down //p')
# shellcheck disable=SC2086 # several words each
try "this kernel has no sch_netem, or refuses it (modprobe sch_netem)" \
    tc qdisc add dev "$interface" root netem $up
try "this kernel has no ifb devices (modprobe ifb)" ip link add "$ifb" type ifb
try "$ifb does not come up" ip link set "$ifb" up
try "this kernel has no sch_ingress (modprobe sch_ingress)" tc qdisc add dev "$interface" ingress
try "what enters cannot be redirected (modprobe cls_matchall act_mirred)" \
    tc filter add dev "$interface" parent ffff: protocol all matchall \
    action mirred egress redirect dev "$ifb"
# shellcheck disable=SC2086
try "this kernel's netem refuses the way down" tc qdisc add dev "$ifb" root netem $down
echo "$link"
