#!/usr/bin/env bash
# What a GPU must give, in one run: parity with transformers, mixed batches, the engine, the benchmark.
#
#   tests/gpu/check.sh [REPORT]
#
# On a machine with an NVIDIA GPU of compute capability 8.0 or more, its driver, CUDA and Rust (deploy/CUDA.md). Builds
# the binary and the tests with the feature `cuda`, runs all parts even if one fails, and writes a report in Markdown
# (target/gpu-report.md by default): what passed, each test's figures, the benchmark's tables. Fails if any part failed.
#
# DEVICE   cuda:0 by default; `cpu` tries the script itself, without the feature.
# BASE     a checkpoint folder to measure beside the phantom, such as LLaVA-Med's.
# FULL     1 for the long benchmark.
# NORMA and SUITE name a binary and a test binary that are built already; tests read their data from the folder that
#          they were built in. Without them both are built.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
report=${1:-target/gpu-report.md}
mkdir -p "$(dirname "$report")"
device=${DEVICE:-cuda:0}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
failed=0

say() { printf "%s\n" "$@" >>"$report"; }

# part NAME PATTERN COMMAND...: runs a command, and reports its end and those lines of its output that match.
part() {
    local name=$1 pattern=$2 log begun outcome
    shift 2
    log="$logs/$name"
    echo "... $name" >&2
    begun=$SECONDS
    if "$@" >"$log" 2>&1; then
        outcome=passed
    else
        outcome="FAILED (exit $?)"
        failed=1
    fi
    say "" "## $name: $outcome, $((SECONDS - begun)) s" "" '```'
    grep -E "$pattern" "$log" >>"$report"
    if [ "$outcome" != passed ]; then
        say "--- last lines"
        tail -n 40 "$log" >>"$report"
    fi
    say '```'
}

if [ -z "${NORMA:-}" ] || [ -z "${SUITE:-}" ]; then
    features=()
    [ "$device" = cpu ] || features=(--features cuda)
    echo "... building" >&2
    cargo build --release --locked -p norma "${features[@]}" || exit 1
    built=$(cargo test --release --locked -p norma "${features[@]}" --test suite --no-run --message-format json) || exit 1
    target=$(cargo metadata --format-version 1 --no-deps | sed -E 's/.*"target_directory":"([^"]*)".*/\1/')
    NORMA=$target/release/norma
    SUITE=$(sed -n -E 's/.*"executable":"([^"]*suite-[^"]*)".*/\1/p' <<<"$built" | tail -n 1)
fi
export NORMA_TEST_DEVICE=$device

printf '# norma on %s\n\n' "$device" >"$report"
say "commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown), $(uname -sm), $(nproc) threads"
if [ "$device" != cpu ]; then
    say "" '```' "$(nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv 2>&1)" '```'
fi

# One test at a time: they share the device's memory, and figures of one are not mixed with another's.
# A filter that no test has is a failure too.
suite() {
    "$SUITE" --test-threads 1 --nocapture "$1" 2>&1 | tee "$logs/output"
    [ "${PIPESTATUS[0]}" = 0 ] && grep -q '^test result: ok. [1-9]' "$logs/output"
}
figures='(parity in|mix in|pages in|crowd).* on |^test result|FAILED$'
part pages "$figures" suite pages::
part parity "$figures" suite on_device::
part self-tests "$figures" suite a_self_test_holds_on_the_device
part engine "$figures" suite an_engine_on_the_device

# Without the lines that say what begins.
tables='^[^.]'
quick=(--quick)
[ "${FULL:-0}" = 1 ] && quick=()
for weights in f32 bf16 q8_0; do
    part "bench-phantom-$weights" "$tables" "$NORMA" bench "${quick[@]}" --device "$device" --weights "$weights"
done
if [ -n "${BASE:-}" ]; then
    for weights in bf16 q8_0; do
        part "bench-base-$weights" "$tables" "$NORMA" bench "${quick[@]}" --device "$device" --base "$BASE" --weights "$weights"
    done
fi

echo "the report is in $report" >&2
exit "$failed"
