#!/usr/bin/env bash
# The tests, from a fresh clone: installs what is missing, builds, runs all of them.
#   tests/run.sh                  the release build, as CI does
#   tests/run.sh cpu-asan         another preset: cpu-debug, cpu-asan, cpu-tsan, cuda-release
#   tests/run.sh cpu-debug -R http   further words go to ctest
set -euo pipefail
cd "$(dirname "$0")/.."

preset="${1:-cpu-release}"
shift || true

deploy/install_deps.sh
# The OpenAI client that one of the cluster tests drives us with.
venv=build/python
if [ ! -x "$venv/bin/python" ]; then
  python3 -m venv "$venv"
fi
"$venv/bin/python" -c 'import openai' 2>/dev/null || "$venv/bin/pip" install --quiet openai

cmake --preset "$preset" >/dev/null
cmake --build --preset "$preset"
ctest --preset "$preset" "$@"
