#!/usr/bin/env bash
# Compiles what docs/scaling.md speaks of: results/aot/*.json and docs/aot_tables.md.
#
#   pip install -e '.[tpu]'
#   benchmarks/aot_tables.sh
#
# Needs no TPU; a program takes two to ten minutes on two cores, base_1b half an hour. A program that is
# in results/aot already is not compiled again, so that this can be stopped and goes on.
set -euo pipefail
cd "$(dirname "$0")/.."

failed=()
compile() {  # SLICE VARIANT FLAGS...; what the compiler cannot do does not keep the others from it
  python -m wmpoe compile --workdir=results/aot --page=docs/aot_tables.md \
    --topology="$1" --config="configs/memory_maze.py:$2" "${@:3}" || failed+=("$*")
}
splash=--config.model.implementation=splash
merged=--config.compose.long_term.reading=merged

# Training, the same work on every chip.
for slice in v5e:4x4:16 v5e:16x16:256 v5p:4x4x8:128 v6e:8x8:64; do
  where=${slice%:*} chips=${slice##*:}
  for variant in base short_term spatial; do
    compile "$where" "$variant" --programs=train --batch=$((16 * chips))
  done
  for variant in full ssm; do
    compile "$where" "$variant" --programs=train --batch=$((4 * chips))
  done
  compile "$where" base_1b --programs=train --batch=$((4 * chips)) --mesh=fsdp=4,tensor=4
done
compile v5e:2x4 base --programs=train --batch=128
compile 2xv5e:4x4 base --programs=train --batch=512
compile 4xv5e:4x4 base --programs=train --batch=1024
compile v5e:4x4 base --programs=train --batch=256 "$splash"
compile v5e:4x4 full --programs=train --batch=64 "$splash"

# Memories of 1024 episodes in one call.
compile v5e:16x16 base --programs=write --episodes=1024

# A denoising step with four episodes on a device: alone, side by side, one after the other.
compile v5e:4x4 base --programs=imagine --episodes=64 --memories=false
compile v5e:4x4 base --programs=imagine --episodes=16 --mesh=expert=4 --experts=short_term,spatial
compile v5e:4x4 base --programs=imagine --episodes=16 --mesh=expert=4 --experts=short_term,spatial \
  "$merged"
compile v5e:4x4 base --programs=imagine --episodes=64 --mesh=expert=1 --experts=short_term,spatial

if ((${#failed[@]})); then
  printf 'not compiled: %s\n' "${failed[@]}" >&2
  exit 1
fi
