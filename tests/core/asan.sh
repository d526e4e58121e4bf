#!/usr/bin/env bash
# Builds the kernels with AddressSanitizer and runs their tests on them: no read or write outside of a tensor. What of AVX-512,
# bfloat16, float16 and AMX the machine lacks is emulated (tests/core/emulated), so that every instruction set is tested wherever this runs.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r core tests app weights pyproject.toml "$work"
rm -f "$work"/core/kernels/*.so
digest=$(python3 -c "
import hashlib, pathlib
print(hashlib.sha256(b''.join(p.read_bytes() for p in sorted(pathlib.Path('core/kernels').glob('*.[ch]')))).hexdigest()[:16])")
vectors=(-DCLEARFOLD_EMULATED '-D__builtin_cpu_supports(set)=1')
emulated() { # whether the machine lacks what this source is for
    case $1 in
        avx512_fp16 | processor) ! grep -q avx512_fp16 /proc/cpuinfo ;;
        *) ! grep -q avx512_bf16 /proc/cpuinfo ;;
    esac
}
# One compiler a source, all at once. Accesses are looked at by calls, not in line, which would take the compiler seven times as long.
compiling=()
for source in "$work"/core/kernels/*.c; do
    flags=()
    if emulated "$(basename "$source" .c)"; then flags=("${vectors[@]}"); fi
    cc -O1 -g1 --param asan-instrumentation-with-call-threshold=0 -std=gnu11 -fPIC -fsanitize=address -fno-omit-frame-pointer -Wno-psabi -DCLEARFOLD_SOURCES="\"$digest\"" \
        "${flags[@]}" -Itests/core/emulated -c "$source" -o "${source%.c}.o" &
    compiling+=($!)
done
for compiler in "${compiling[@]}"; do wait "$compiler"; done
cc -shared -fsanitize=address "$work"/core/kernels/*.o -o "$work/core/kernels/_kernels.so" -lpthread
cd "$work"
# A build that can't be loaded must not pass for want of kernels to test.
# Python itself and torch keep memory to their end: leaks are not looked for.
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1
watched=$(cc -print-file-name=libasan.so)
LD_PRELOAD=$watched python3 -c "from core import kernels; assert len(kernels.available()) == 5, kernels.why()"
LD_PRELOAD=$watched python3 -m pytest -p no:cacheprovider tests/core/test_kernels.py -k "not environment and not refused and not compiler and not instruction and not amx_ and not amxs" "$@"
