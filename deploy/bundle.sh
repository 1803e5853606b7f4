#!/usr/bin/env bash
# Packs the programs of a build and the shared libraries they need into one archive, which runs on
# any Linux host with glibc as new as this one's:
#   deploy/bundle.sh [--build DIR] [--output FILE] [--with-cublas]
#     --build DIR      of an existing build; default: build/cuda-release
#     --output FILE    *.tar.gz, *.tar.xz or *.tar; default: DIR/glmserve-SYSTEM-MACHINE.tar.gz
#     --with-cublas    cuBLASLt too (0.5 GB), for hosts that have the NVIDIA driver and nothing else
# The archive holds one folder: bin/ (glmserve, its router, worker and benchmarks), lib/, licenses/ of
# those libraries where Debian states them, and MANIFEST. Programs find lib/ beside them wherever the
# folder lies (RPATH), so no variable has to be set. Not packed: glibc; the driver's libcuda; and
# cuBLASLt, unless told to, which then comes from the host's CUDA runtime: /usr/local/cuda, the
# linker's cache, or LD_LIBRARY_PATH.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

build="$root/build/cuda-release"
output=""
with_cublas=""
usage() { sed -n '4,7s/^# *//p' "$0" >&2; exit 2; }
while [ $# -gt 0 ]; do
  case "$1" in
    --build) build=${2:-}; shift 2 || usage ;;
    --output) output=${2:-}; shift 2 || usage ;;
    --with-cublas) with_cublas=yes; shift ;;
    *) usage ;;
  esac
done
fail() { echo "bundle.sh: $*" >&2; exit 1; }

programs=(glmserve glmserve-router glmserve-worker glmserve-bench)
for program in "${programs[@]}"; do
  [ -x "$build/bin/$program" ] ||
    fail "there is no $build/bin/$program; build it: cmake --build $build --target ${programs[*]}"
done
name=glmserve-$(uname -s | tr '[:upper:]' '[:lower:]')-$(uname -m)
[ -n "$output" ] || output="$build/$name.tar.gz"
case "$output" in
  *.tar | *.tar.gz | *.tar.xz) ;;
  *) fail "--output is $output, accepted: *.tar.gz, *.tar.xz, *.tar" ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
stage="$work/$name"
mkdir -p "$stage/bin" "$stage/lib" "$stage/licenses"

# The host's own: parts of glibc, which must match the host's loader, and of the NVIDIA driver.
from_host='^(ld-linux.*|lib(c|m|dl|rt|pthread|resolv|util|anl|mvec|nsl|nss_.*|cuda|nvidia-.*))\.so'
[ -n "$with_cublas" ] || from_host="$from_host|^libcublas"

for program in "${programs[@]}"; do
  readelf -d "$build/bin/$program" | grep -q '(RPATH).*\$ORIGIN/../lib' ||
    fail "$build/bin/$program does not look for libraries beside it; build it anew"
  strip --strip-unneeded -o "$stage/bin/$program" "$build/bin/$program"
done

# Lines of ldd: "NAME => PATH (address)", or "NAME => not found".
ldd "${programs[@]/#/$build/bin/}" | awk '$2 == "=>" { print $1, $3 }' | sort -u >"$work/libraries"
while read -r library path; do
  [[ "$library" =~ $from_host ]] && continue
  [ "$path" != not ] || fail "the library $library, which the programs need, is not on this host"
  install -m 0644 "$(readlink -f "$path")" "$stage/lib/$library"
  strip --strip-unneeded "$stage/lib/$library"
  package=$(dpkg-query -S "$(readlink -f "$path")" 2>/dev/null | head -n 1 | cut -d: -f1 || true)
  version=""
  if [ -n "$package" ]; then
    version=$(dpkg-query -W -f='${Version}' "$package" 2>/dev/null | head -n 1 || true)
    cp -L "/usr/share/doc/$package/copyright" "$stage/licenses/$package" 2>/dev/null || true
  fi
  echo "lib/$library ${package:-$path} $version" >>"$stage/MANIFEST"
done <"$work/libraries"

{
  echo "built from $(git -C "$root" describe --always --dirty 2>/dev/null || echo 'no repository')"
  echo "needs glibc $(ldd --version | awk 'NR == 1 { print $NF }') or newer"
  if ldd "$build/bin/glmserve-worker" | grep -q libcublasLt; then
    echo "needs the NVIDIA driver$([ -n "$with_cublas" ] || echo ' and cuBLASLt of the CUDA runtime')"
  fi
} | cat - "$stage/MANIFEST" >"$work/manifest"
mv "$work/manifest" "$stage/MANIFEST"

mkdir -p "$(dirname "$output")"
tar --auto-compress --owner=0 --group=0 --sort=name -C "$work" -cf "$output" "$name"
echo "$output: $(du -h "$output" | cut -f1), $(find "$stage/lib" -type f | wc -l) libraries"
