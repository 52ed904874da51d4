#!/usr/bin/env bash
# All that needs a GPU, checks first, in one call of about eight minutes:  bash benchmarks/on_gpu.sh | tee gpu.log
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/env.sh"
cd "$root"
nvidia-smi --query-gpu=name,memory.total --format=csv,noheader
"$python" -m pytest tests/test_cuda.py

bench() { "$python" -m "benchmarks.bench_$1" --device cuda --rounds 1 "${@:2}" | grep -v '^{'; }
phantom=pretrained_models/endogen_phantom_gpt.safetensors
for clips in 1 8; do
  bench sampling --mixed-precision bf16 --batch-size "$clips" --steps 64 --variants plain compiled steps
done
for clips in 64 128; do
  bench sampling --mixed-precision bf16 --batch-size "$clips" --steps 64
done
bench sampling --batch-size 8 --steps 64
bench sampling --mixed-precision bf16 --batch-size 8 --steps 32 --tokens 4096
bench sampling --gpt-ckpt "$phantom" --batch-size 1 --cfg-scale 4 --variants plain steps 8 16
bench sampling --work pictures --mixed-precision bf16 --variants plain ours
bench sampling --work clips --mixed-precision bf16 --variants plain steps
bench sampling --work clips --mixed-precision bf16 --batch-size 256 --variants steps
bench training --variants plain ours compiled
bench features --clips 128 --batch-size 16 --memory-clips 200
