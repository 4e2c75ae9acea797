#!/usr/bin/env bash
# Mean divergence (KL, nats a token) of weight types from the f32 run, llmopt beside llama.cpp, on the same text, the same windows (512
# tokens, second half), the same files: f32 is MODEL.gguf dequantized, each type is that quantized again by llama-quantize.
# Both references keep keys and values in f32. Fails if a mean of llmopt's is above llama.cpp's by more than two standard errors of the difference.
#   scripts/kl_beside_llama_cpp.sh LLAMA_BIN MODEL.gguf [WORK_DIR]     LLAMA_BIN: folder of llama-quantize and llama-perplexity
#   TYPES="Q4_0 Q4_K_M": which types; STORED=1: MODEL itself, too. PEER_ONLY=1 stops after llama.cpp's part; it is not repeated while
#   WORK_DIR keeps its logs.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
bin=${1:?folder of llama.cpp\'s programs}; model=$(realpath "${2:?a .gguf file}"); work=${3:-$(mktemp -d)}
types=${TYPES-Q4_0 Q4_1 Q4_K_M Q5_K_M Q6_K Q8_0 IQ4_XS}
root=$(cd "$(dirname "$0")/.." && pwd); threads=${THREADS:-$(nproc)}
mkdir -p "$work"
text=$work/text.txt
{
    cat "$root/prompts/perplexity.txt"
    python3 -c '
import json, sys
prompts = [json.loads(line) for line in open(sys.argv[1])]
texts = [p.get("prompt") or " ".join(m["content"] for m in p["messages"]) for p in prompts]
print("\n\n".join(dict.fromkeys(texts)))' "$root/prompts/prompts64.jsonl"
} >"$text"
echo "text: sha256 $(sha256sum <"$text" | cut -c1-16), $(wc -c <"$text") bytes"

peer() { # NAME MODEL ARGS...
    local log=$work/peer_$1.log
    [ -s "$log" ] && grep -q "Mean    KLD\|Final estimate" "$log" && return
    "$bin/llama-perplexity" -m "$2" -f "$text" -c 512 -b 512 -t "$threads" --kl-divergence-base "$work/base.kld" "${@:3}" >"$log" 2>&1
}
for type in F32 $types; do
    [ -s "$work/$type.gguf" ] || "$bin/llama-quantize" --allow-requantize \
        "$([ $type = F32 ] && echo "$model" || echo "$work/F32.gguf")" "$work/$type.gguf" $type "$threads" >"$work/quantize_$type.log" 2>&1
done
peer f32 "$work/F32.gguf" -fa off -ctk f32 -ctv f32
files=
for type in ${STORED:+stored} $types; do
    file=$work/$type.gguf
    [ "$type" != stored ] || file=$model
    peer "$type" "$file" --kl-divergence
    files=$files${files:+,}$type=$file
done
for type in ${STORED:+stored} $types; do
    awk -v t="$type" '/Mean    KLD/ {kl = $3; e = $5} /Same top p/ {s = $4 / 100}
        END {printf "llama.cpp %s mean_kl %s error %s same_top %.5f\n", t, kl, e, s}' "$work/peer_$type.log"
done | tee "$work/peer.txt"
[ -n "${PEER_ONLY:-}" ] && exit

cd "$root"
LLMOPT_KL_TEXT=$text LLMOPT_KL_BASE=$work/F32.gguf LLMOPT_KL_FILES=$files \
    cargo test --release --test parity -- --ignored --nocapture divergence 2>/dev/null | grep '^llmopt' | tee "$work/ours.txt"
awk 'FILENAME ~ /peer/ {kl[$2] = $4; e[$2] = $6; next}
     {n++; if ($6 > kl[$2] + 2 * sqrt(e[$2] ^ 2 + $8 ^ 2)) {print $2 ": above llama.cpp"; bad = 1} else print $2 ": " $6 " beside " kl[$2]}
     END {exit bad || n == 0}' "$work/peer.txt" "$work/ours.txt"
