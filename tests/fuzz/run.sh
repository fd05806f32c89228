#!/bin/bash
# A fuzz target under libFuzzer, with coverage, on the stable toolchain (docs/fuzzing.md). Needs a C++ compiler.
#   tests/fuzz/run.sh TARGET [SECONDS] [libFuzzer's own flags]         an input that breaks a promise: target/fuzz/found/TARGET-*
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${1:?which target? one of: $(sed -n 's/.*name: "\([a-z_]*\)".*/\1/p' tests/fuzz/src/targets/mod.rs | xargs)}
seconds=${2:-300}
shift $(( $# < 2 ? $# : 2 ))

# rustc's own passes for coverage: what cargo-fuzz asks of them, without the sanitizers, which want the nightly toolchain. --target keeps
# the flags off build scripts and macros.
host=$(rustc -vV | sed -n 's/^host: //p')
flags="--cfg fuzzing -Cpasses=sancov-module"
for flag in level=4 inline-8bit-counters pc-table trace-compares; do
    flags+=" -Cllvm-args=-sanitizer-coverage-$flag"
done
RUSTFLAGS=$flags cargo build --quiet --package fuzz --features libfuzzer --profile fuzz --target "$host" --target-dir target/fuzz

corpus=target/fuzz/corpus/$target
mkdir -p "$corpus" target/fuzz/found
# 10 s for one input is a finding, and so is half a GiB; 16 KiB hold every message and archive that matters.
FUZZ_TARGET=$target FUZZ_SEEDS=$corpus "target/fuzz/$host/fuzz/wharf-fuzz" "$corpus" -max_total_time="$seconds" -max_len=16384 \
    -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=512 -artifact_prefix="target/fuzz/found/$target-" -print_final_stats=1 "$@"
