#!/bin/sh
# Makes what it takes to try TLS and tokens: an authority, a server's certificate, a client's,
# and a token. For trying: the authority's key lies beside the others.
#
#     deploy/make_certs.sh OUT_DIR [HOST...]
#
# The server's certificate is for localhost, 127.0.0.1, ::1 and each HOST (a name or an address).
set -eu
umask 077

fail() {
    echo "make_certs.sh: $1" >&2
    exit 2
}

[ $# -ge 1 ] || fail "usage: deploy/make_certs.sh OUT_DIR [HOST...]"
command -v openssl >/dev/null || fail "openssl is not here; install it"
out=$1
shift

names="DNS:localhost,IP:127.0.0.1,IP:::1"
for host in "$@"; do
    case $host in
        "" | *[!A-Za-z0-9.:*_-]*) fail "'$host' is neither a host name nor an address" ;;
        *:*) names="$names,IP:$host" ;;
        *[!0-9.]*) names="$names,DNS:$host" ;;
        *) names="$names,IP:$host" ;;
    esac
done

for file in ca.pem ca.key server.pem server.key client.pem client.key tokens; do
    [ ! -e "$out/$file" ] || fail "$out/$file is there already; name another directory"
done

mkdir -p "$out"
work=$(mktemp -d "$out/.making.XXXXXX")
finish() {
    code=$?
    [ "$code" -eq 0 ] || cat "$work/log" >&3
    rm -rf "$work"
    exit "$code"
}
exec 3>&2 2>"$work/log"
trap finish EXIT

key() {
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$work/$1.key"
}

# certificate NAME SUBJECT EXTENSIONS: signed by the authority.
certificate() {
    key "$1"
    openssl req -new -key "$work/$1.key" -subj "/CN=$2" -out "$work/$1.csr"
    printf '%s\n' "basicConstraints=critical,CA:FALSE" "$3" >"$work/$1.ext"
    openssl x509 -req -in "$work/$1.csr" -CA "$work/ca.pem" -CAkey "$work/ca.key" \
        -set_serial "0x$(openssl rand -hex 16)" -days 365 -sha256 \
        -extfile "$work/$1.ext" -out "$work/$1.pem"
}

key ca
cat >"$work/ca.cnf" <<END
[req]
distinguished_name = name
x509_extensions = authority
prompt = no
[name]
CN = Outrider trial authority
[authority]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
END
openssl req -x509 -new -key "$work/ca.key" -config "$work/ca.cnf" -days 365 -sha256 \
    -out "$work/ca.pem"
certificate server "Outrider server" "subjectAltName=$names
extendedKeyUsage=serverAuth"
certificate client "Outrider client" "extendedKeyUsage=clientAuth"
echo "trial $(openssl rand -hex 32)" >"$work/tokens"

for file in ca.pem ca.key server.pem server.key client.pem client.key tokens; do
    mv "$work/$file" "$out/$file"
done
chmod 644 "$out/ca.pem" "$out/server.pem" "$out/client.pem"

cat <<END
Written to $out; *.key and tokens are for their owner alone. Try it with

  outrider-cloud serve --model demo/target --listen 0.0.0.0:50051 \\
      --set security.tls_cert=$out/server.pem --set security.tls_key=$out/server.key \\
      --set security.tls_client_ca=$out/ca.pem --set security.token_file=$out/tokens

  outrider-edge generate --server ${1:-localhost}:50051 --draft demo/draft --prompt "Once upon a time" \\
      --tls-ca $out/ca.pem --token-file $out/tokens \\
      --set security.tls_cert=$out/client.pem --set security.tls_key=$out/client.key
END
