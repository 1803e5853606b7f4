#!/usr/bin/env bash
# Certificates for the wire between routers and workers, for trying TLS out and for small deployments:
#   deploy/make_certificates.sh DIR worker=host1,10.0.0.1 router=host2
# makes DIR/ca.pem and DIR/ca.key if they are not there yet, and for each NAME=HOSTS a certificate
# DIR/NAME.pem with its key DIR/NAME.key, good for those host names and addresses both as a server and
# as a client. Keep ca.key off the serving hosts. Files are replaced at once, certificate after key, so
# running processes take new ones without a restart.
set -euo pipefail

days="${GLM_CERTIFICATE_DAYS:-365}"
if [ "$#" -lt 2 ]; then
  echo "usage: deploy/make_certificates.sh DIR NAME=HOST[,HOST...] ..." >&2
  exit 2
fi
out="$1"
shift
umask 077
mkdir -p "$out"
work=$(mktemp -d "$out/.new-XXXXXX")
trap 'rm -rf "$work"' EXIT

if [ ! -e "$out/ca.pem" ]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days "$days" \
    -subj "/CN=glmserve CA" -keyout "$out/ca.key" -out "$out/ca.pem" 2>/dev/null
fi

for spec in "$@"; do
  name="${spec%%=*}"
  hosts="${spec#*=}"
  alternatives=""
  IFS=, read -ra each <<<"$hosts"
  for host in "${each[@]}"; do
    if [[ "$host" =~ ^[0-9.]+$ || "$host" == *:* ]]; then kind=IP; else kind=DNS; fi
    alternatives="${alternatives:+$alternatives,}$kind:$host"
  done
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -subj "/CN=$name" \
    -keyout "$work/$name.key" -out "$work/$name.csr" 2>/dev/null
  printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n' \
    "$alternatives" >"$work/$name.ext"
  openssl x509 -req -in "$work/$name.csr" -CA "$out/ca.pem" -CAkey "$out/ca.key" -days "$days" \
    -set_serial "0x$(openssl rand -hex 15)" -extfile "$work/$name.ext" -out "$work/$name.pem" 2>/dev/null
  mv "$work/$name.key" "$out/$name.key"
  mv "$work/$name.pem" "$out/$name.pem"
done
