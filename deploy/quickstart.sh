#!/usr/bin/env bash
# From a fresh clone on Debian 12 to a chat with a cluster, on any machine, without a GPU:
#   deploy/quickstart.sh          installs, builds, starts a router and two CPU workers on the bundled
#                                 model, and lets you chat; end it with Ctrl-D or Ctrl-C
#   deploy/quickstart.sh --once   the same with one question, then stops everything
# While it runs, http://127.0.0.1:8000/v1 speaks the OpenAI API.
set -euo pipefail
cd "$(dirname "$0")/.."

once=""
case "${1:-}" in
  "") ;;
  --once) once=yes ;;
  *) echo "usage: deploy/quickstart.sh [--once]" >&2; exit 2 ;;
esac

say() { printf '\033[1m== %s\033[0m\n' "$*"; }

say "1/3 packages"
deploy/install_deps.sh

say "2/3 build (build/cpu-release, a few minutes the first time)"
cmake --preset cpu-release >/dev/null
cmake --build --preset cpu-release --target glmserve glmserve-router glmserve-worker

say "3/3 a router and two workers on deploy/demo-model"
logs=$(mktemp -d /tmp/glmserve-quickstart-XXXXXX)
build/cpu-release/bin/glmserve serve deploy/demo-model --data-parallel-size 2 --log-dir "$logs" \
  >"$logs/ready" 2>"$logs/launcher.log" &
cluster=$!
stop() {
  kill -TERM "$cluster" 2>/dev/null && wait "$cluster" 2>/dev/null || true
}
trap stop EXIT

for _ in $(seq 300); do
  grep -q ready "$logs/ready" && break
  if ! kill -0 "$cluster" 2>/dev/null; then
    echo "The cluster did not start:" >&2
    tail -n 20 "$logs"/*.log >&2
    exit 1
  fi
  sleep 0.1
done
cat "$logs/ready"
echo "Logs: $logs"

if [ -n "$once" ]; then
  question="What is glmserve?"
  printf '\n> %s\n' "$question"
  build/cpu-release/bin/glmserve chat --no-thinking --message "$question" | tee "$logs/answer"
  if ! grep -q '[[:alpha:]]' "$logs/answer"; then
    echo "The answer is empty." >&2
    exit 1
  fi
else
  cat <<'TXT'
Ask something (Ctrl-D ends it), or from another terminal:
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \
    -d '{"model": "demo-model", "stream": true, "messages": [{"role": "user", "content": "Hello!"}]}'
TXT
  build/cpu-release/bin/glmserve chat --no-thinking
fi
