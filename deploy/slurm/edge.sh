#!/bin/bash
# Waits for the server that shares the folder RUN, and runs the bench against it:
#
#     deploy/slurm/edge.sh RUN OUT [FLAGS OF outrider-edge bench...]
#
# DRAFT and PROMPTS name what is run; WAIT_SECONDS how long the server may take to come.
set -euo pipefail

run=${1:?usage: deploy/slurm/edge.sh RUN OUT [FLAGS...]}
out=${2:?usage: deploy/slurm/edge.sh RUN OUT [FLAGS...]}
shift 2
until [ -e "$run/address" ]; do
    if [ "$SECONDS" -ge "${WAIT_SECONDS:-600}" ]; then
        echo "edge.sh: no server wrote $run/address in ${WAIT_SECONDS:-600} s; is its job running?" >&2
        exit 3
    fi
    sleep 0.2
done
exec outrider-edge bench --server "$(cat "$run/address")" \
    --tls-ca "$run/certs/ca.pem" --token-file "$run/certs/tokens" \
    --draft "${DRAFT:-demo/draft}" --prompts "${PROMPTS:-demo/prompts.jsonl}" --out "$out" "$@"
