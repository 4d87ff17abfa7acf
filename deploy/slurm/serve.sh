#!/bin/bash
# Serves the target on this node, for jobs that share the folder RUN:
#
#     deploy/slurm/serve.sh RUN [FLAGS OF outrider-cloud serve...]
#
# RUN/certs gets certificates and a token made for this node; RUN/address the address, once the
# server is ready. MODEL names the target. On SIGTERM it drains; on SIGUSR1 too, which srun passes
# on where it takes SIGTERM for a wish to kill.
set -euo pipefail

run=${1:?usage: deploy/slurm/serve.sh RUN [FLAGS...]}
shift
host=$(hostname)
mkdir -p "$run"
# Of an earlier start, maybe on another node: a requeued job has new ones.
rm -rf "$run/address" "$run/certs"
deploy/make_certs.sh "$run/certs" "$host" >"$run/certs.log"
: >"$run/ready"

# Runs beside the server, whose process is $$, until it ends.
say_address() {
    trap 'rm -f "$run/address"; exit' TERM
    trap 'kill -TERM $$' USR1
    while kill -0 $$ 2>/dev/null; do
        port=$(sed -n 's/^READY grpc=.*:\([0-9]*\) .*/\1/p' "$run/ready")
        if [ -n "$port" ] && [ ! -e "$run/address" ]; then
            echo "$host:$port" >"$run/address.new"
            mv "$run/address.new" "$run/address"
        fi
        sleep 0.5
    done
    rm -f "$run/address"
}
say_address &

# In this process's place, so that a signal to the job reaches the server once: a second SIGTERM
# would end the draining.
exec outrider-cloud serve --model "${MODEL:-demo/target}" \
    --listen 0.0.0.0:0 --metrics-listen 127.0.0.1:0 \
    --set "security.tls_cert=$run/certs/server.pem" --set "security.tls_key=$run/certs/server.key" \
    --set "security.token_file=$run/certs/tokens" "$@" >"$run/ready"
