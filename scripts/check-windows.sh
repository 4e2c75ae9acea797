#!/usr/bin/env bash
# The Windows program under Wine: builds it with mingw, answers prompts, resumes, overwrites, refuses, and compares with this system's program.
#   scripts/check-windows.sh MODEL.gguf [LLMOPT]     LLMOPT: target/release/llmopt; PROGRAM=llmopt.exe takes one that is built
# Needs the target x86_64-pc-windows-gnu (rustup), Debian's gcc-mingw-w64-x86-64-posix and wine64. What Wine 8 has not: Ctrl-C for programs
# that ask for the handler before theirs (SIG_GET), names given to files that are open.
set -euo pipefail
case ${1:-} in -h | --help | '') sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
model=$(realpath "$1")
cd "$(dirname "$0")/.."
here=$(realpath "${2:-target/release/llmopt}")
if [ -z "${PROGRAM:-}" ]; then
    cargo build --release --locked --features parquet --target x86_64-pc-windows-gnu
    PROGRAM=target/x86_64-pc-windows-gnu/release/llmopt.exe
fi
wine=$(command -v wine64 || echo /usr/lib/wine/wine64)
work=$(mktemp -d)
export WINEPREFIX=$work/wine WINEDEBUG=-all
trap 'WINEPREFIX=$work/wine "$(dirname "$wine")/wineserver" -k 2> /dev/null || true; rm -rf "$work"' EXIT
mkdir "$work/in"
cp "$PROGRAM" "$work/in/llmopt.exe"
cp "$model" "$work/in/m.gguf"
cd "$work/in"
# Windows 10 has this library, Wine 8 has not.
cat > p.c << 'C'
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID, ULONG);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE b, SIZE_T n) { return SystemFunction036(b, (ULONG)n); }
C
x86_64-w64-mingw32-gcc -shared -o bcryptprimitives.dll p.c -ladvapi32
llmopt() { "$wine" llmopt.exe "$@"; }
seq 1 30 | sed 's/.*/What is & plus &?/' > p.txt
flags=(-m m.gguf --max-tokens 8 -q)
answers() { grep -o '"id":"[^"]*"\|"answer":.*"completion_tokens":[0-9]*\|"settings":"[^"]*"' "$1" | paste - - - | sort; }
failed=0
check() { if [ "$2" = 0 ]; then echo "ok      $1"; else echo "FAILED  $1"; failed=1; fi; }
same() { [ "$(wc -l < "$1")" = 30 ] && [ "$(answers here.jsonl)" = "$(answers "$1")" ]; }
set +e
llmopt --version
check "it says what it is" $?
"$here" run p.txt "${flags[@]}" -o here.jsonl
llmopt run p.txt "${flags[@]}" -o there.jsonl && same there.jsonl
check "30 answers and their settings are those of this system's program" $?
head -n 20 there.jsonl > cut.jsonl; printf '{"id":"p.txt:21","pro' >> cut.jsonl
llmopt run p.txt "${flags[@]}" -o cut.jsonl --resume && same cut.jsonl
check "a torn output is resumed" $?
llmopt run p.txt "${flags[@]}" -o cut.jsonl 2> err; [ $? = 2 ] && same cut.jsonl
check "an output that exists is refused: $(cat err)" $?
printf 'old\n' > old.jsonl
llmopt run p.txt "${flags[@]}" -o old.jsonl --overwrite && same old.jsonl
check "an output is overwritten" $?
ln p.txt hard.txt
llmopt run p.txt "${flags[@]}" -o hard.txt --overwrite 2> err; [ $? = 2 ] && [ "$(wc -l < p.txt)" = 30 ]
check "an input by another name is refused: $(cat err)" $?
llmopt run p.txt "${flags[@]}" -o o.csv --columns id,answer && llmopt run p.txt "${flags[@]}" -o o.parquet && [ -s o.parquet ] && [ "$(wc -l < o.csv)" -ge 31 ]
check "tables are made from their journals" $?
[ -z "$(find . -name '.llmopt-*' -o -name '*.journal.jsonl')" ]
check "nothing is left beside them" $?
seq 1 20000 | sed 's/.*/What is & plus &?/' > many.txt
llmopt run many.txt "${flags[@]}" -o many.jsonl &
running=$!
until [ -s many.jsonl ] || ! kill -0 $running; do sleep 0.2; done
llmopt run many.txt "${flags[@]}" -o many.jsonl --resume 2> err; [ $? = 2 ]
check "a second writer is refused: $(cat err)" $?
kill -KILL "$(pgrep -P $running || echo $running)"
wait $running 2> /dev/null
llmopt run many.txt --limit 40 "${flags[@]}" -o many.jsonl --resume && [ "$(wc -l < many.jsonl)" -ge 40 ]
check "a killed run is gone on with" $?
exit $failed
