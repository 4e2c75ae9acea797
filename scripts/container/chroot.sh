#!/usr/bin/env bash
# The image of scripts/container/Dockerfile without a container runtime: lays its files out in a folder, checks that nothing but the
# program's libraries is needed, and runs it there by chroot in name spaces of its own, as user 10001, with a root that cannot be written.
#   scripts/container/chroot.sh MODEL.gguf [LLMOPT]     LLMOPT: target/release/llmopt; needs root, unshare, mount
# It answers prompts with the model by a volume and with the model in the image, and compares them with those of the program outside;
# it resumes after a kill, and shows what a container without rights must not do.
set -euo pipefail
case ${1:-} in -h | --help | '') sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
model=$(realpath "$1")
llmopt=$(realpath "${2:-target/release/llmopt}")
root=$(mktemp -d) && chmod 755 "$root"
outside=$(mktemp -d)
trap 'rm -rf "$root" "$outside"' EXIT
mkdir -p "$root"/{usr/local/bin,etc,proc,dev,tmp,models,work,lib64}
install -m 755 "$llmopt" "$root/usr/local/bin/llmopt"
# The libraries of debian:bookworm-slim that it loads: the C library, its loader and libgcc_s.
ldd "$llmopt" | grep -o '/[^ ]*' | sort -u | while read -r library; do
    mkdir -p "$root$(dirname "$library")" && cp -L "$library" "$root$library"
done
echo 'llmopt:x:10001:10001::/work:/usr/sbin/nologin' > "$root/etc/passwd"
echo 'llmopt:x:10001:' > "$root/etc/group"
install -m 444 "$model" "$root/model.gguf"
touch "$root/dev/null"
chown 10001:10001 "$root/work"
echo "laid out: $(find "$root" -type f ! -path "$root/dev/*" | sed "s|^$root||" | sort | tr '\n' ' ')"

# What `docker run --read-only -v models:/models:ro -v work:/work` does, by the kernel's own means.
inside() {
    unshare --mount --pid --net --ipc --fork bash -ec '
        root=$1 models=$2; shift 2
        mount --make-rprivate /
        mount --bind "$root" "$root" && mount --bind "$models" "$root/models" && mount --bind "$root/work" "$root/work"
        mount -o remount,bind,ro "$root/models" && mount -o remount,bind,ro "$root"
        mount -t proc proc "$root/proc" && mount --bind /dev/null "$root/dev/null"
        exec env -i HOME=/work LLMOPT_CACHE=/models PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin \
            chroot --userspec=10001:10001 "$root" llmopt "$@"' bash "$root" "$(dirname "$model")" "$@"
}

seq 1 60 | sed 's/.*/What is & plus &?/' > "$root/work/p.txt"
flags=(--max-tokens 8 --threads 1 -q)
"$llmopt" run "$root/work/p.txt" -m "$model" "${flags[@]}" -o "$outside/a.jsonl"
inside run /work/p.txt -m "/models/$(basename "$model")" "${flags[@]}" -o /work/volume.jsonl
inside run /work/p.txt -m /model.gguf "${flags[@]}" -o /work/baked.jsonl
answers() { grep -o '"id":"[^"]*"\|"answer":.*"finish_reason"' "$1" | paste - - | sort; }
failed=0
check() { if [ "$2" = 0 ]; then echo "ok      $1"; else echo "FAILED  $1"; failed=1; fi; }
for kind in volume baked; do
    [ "$(answers "$outside/a.jsonl")" = "$(answers "$root/work/$kind.jsonl")" ] && [ "$(wc -l < "$root/work/$kind.jsonl")" = 60 ]
    check "$kind: 60 answers, those of the program outside" $?
done
[ "$(stat -c %u "$root/work/volume.jsonl")" = 10001 ]; check "the answers belong to user 10001" $?

set +e
head -n 20 "$root/work/volume.jsonl" > "$root/work/cut.jsonl"; printf '{"id":"p.txt:21","pro' >> "$root/work/cut.jsonl"; chown 10001 "$root/work/cut.jsonl"
inside run /work/p.txt -m /model.gguf "${flags[@]}" -o /work/cut.jsonl --resume
[ $? = 0 ] && [ "$(answers "$outside/a.jsonl")" = "$(answers "$root/work/cut.jsonl")" ]; check "a torn output of a killed container is resumed" $?
inside run /work/p.txt -m /model.gguf "${flags[@]}" -o /models/x.jsonl 2> "$outside/err"
[ $? != 0 ] && [ ! -e "$(dirname "$model")/x.jsonl" ]; check "nothing can be written to the models: $(cat "$outside/err")" $?
inside run /work/p.txt -m /model.gguf "${flags[@]}" -o /x.jsonl 2> "$outside/err"
[ $? != 0 ] && [ ! -e "$root/x.jsonl" ]; check "nor to the root: $(cat "$outside/err")" $?
inside run /work/p.txt -m smollm2-none/none "${flags[@]}" -o /work/y.jsonl 2> "$outside/err"
[ $? = 2 ] && [ "$(wc -l < "$outside/err")" = 1 ]; check "a model that is not there, no network: $(cut -c1-160 "$outside/err")" $?
exit $failed
