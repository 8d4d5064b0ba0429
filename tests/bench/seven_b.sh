#!/usr/bin/env bash
# A 7B base on this machine, once: written, served, asked one question, deleted.
#
#   tests/bench/seven_b.sh FOLDER [SIZE] [serve's further arguments, such as --weights bf16]
#
# FOLDER takes SIZE (7b by default: 14.5 GB; 7b-small, 0.9 GB, tries the script) and is removed at the end.
# Prints seconds to write and to be ready, the server's peak resident memory (VmHWM) once it is ready and at the
# end, the first token of one image question and seconds for each further token, as JSON on the last line.
# NORMA names the binary, PYTHON a Python with numpy and pillow, TOKENS the answer's length.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:?a folder is needed}
size=${2:-7b}
shift $(($# < 2 ? $# : 2))
norma=${NORMA:-$here/../../target/release/norma}
python=${PYTHON:-python3}
tokens=${TOKENS:-16}

if [ -e "$folder" ]; then
    echo "$folder is there already" >&2
    exit 1
fi
server=
finish() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$folder"
}
trap finish EXIT
mkdir -p "$folder"

now() { date +%s.%N; }
peak_kb() { awk '/VmHWM/ { print $2 }' "/proc/$server/status"; }

begun=$(now)
"$python" "$here/random_llava.py" "$size" "$folder/base"
written=$(now)

"$norma" serve --base "$folder/base" --data-dir "$folder/data" --served-name base --listen 127.0.0.1:0 \
    --metrics-listen none --request-timeout 86400 "$@" >"$folder/serve.log" 2>&1 &
server=$!
until grep -q '^ready' "$folder/serve.log"; do
    if ! kill -0 "$server" 2>/dev/null; then
        cat "$folder/serve.log" >&2
        exit 1
    fi
    sleep 0.2
done
ready=$(now)
loaded_kb=$(peak_kb)
sed 's/^/serve: /' "$folder/serve.log" >&2
url=$(sed -n 's/^address *\(http[^ ]*\)\/v1$/\1/p' "$folder/serve.log")

answer=$("$python" "$here/ask_once.py" "$url" 336 "$tokens")
"$python" - "$size" "$begun" "$written" "$ready" "$loaded_kb" "$(peak_kb)" "$answer" <<'PYTHON'
import json
import sys

size, begun, written, ready, loaded_kb, peak_kb, answer = sys.argv[1:]
print(json.dumps({
    "size": size,
    "write_seconds": round(float(written) - float(begun), 1),
    "load_seconds": round(float(ready) - float(written), 1),
    "peak_gb_loaded": round(int(loaded_kb) * 1024 / 1e9, 2),
    "peak_gb": round(int(peak_kb) * 1024 / 1e9, 2),
} | json.loads(answer)))
PYTHON
