#!/usr/bin/env bash
# The bundled models from nothing:  bash scripts/reproduce_phantom.sh OUT [KVASIR_SEG]
# KVASIR_SEG is the unpacked data set (https://datasets.simula.no/kvasir-seg, CC BY 4.0); without it the tokenizer
# learns from the phantom alone. Several hours on two CPU cores; rerun the same command to continue. Leaves the files
# of pretrained_models/ in OUT/model, with the probe's report on the clips that they make in OUT/samples.
set -euo pipefail
usage="usage: $0 OUT [KVASIR_SEG]"
out=${1:?"$usage"} kvasir=${2:-}
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

: "${CLIPS:=560}" "${VQ_STEPS:=1500}" "${MOSAIC_STEPS:=650}" "${GPT_STEPS:=1950}" "${PROBE_STEPS:=1000}"
: "${SAMPLES:=50}"                     # clips per class that are measured
vq=$out/model/endogen_phantom_vq.safetensors gpt=$out/model/endogen_phantom_gpt.safetensors
probe=$out/model/endogen_phantom_probe.safetensors

launch dataset.phantom --video-path "$out/videos" --clips-per-class "$CLIPS" --frames 16 --fps 12
launch dataset.prepare --video-path "$out/videos" --data-path "$out/grids" --preset phantom --crop none
pictures=("$out/grids") share=(1)
if [ -n "$kvasir" ]; then
  mkdir -p "$out/stills" && ln -sfn "$(realpath "$kvasir/images")" "$out/stills/polyp"
  launch dataset.prepare --video-path "$out/stills" --data-path "$out/kvasir" --rows 1 --cols 1 --frame-size 128
  pictures+=("$out/kvasir") share=(0.75 0.25)
fi

# Tokenizer: single frames first, then mosaics of 4 x 4 frames, as the grids will be.
train_vq() { NPROC=1 launch tokenizer.train_vq --data-path "${pictures[@]}" --data-share "${share[@]}" --lr-schedule cosine \
  --weight-decay 0.01 "$@"; }
train_vq --results-dir "$out/tokenizer_frames" --ch 16 --ch-mult 1 2 4 8 8 --z-channels 64 --num-res-blocks 1 \
  --codebook-size 1024 --global-batch-size 8 --lr 5e-4 --warmup-steps 100 --ema-decay 0.998 --max-steps "$VQ_STEPS"
train_vq --results-dir "$out/tokenizer" --vq-ckpt "$out/tokenizer_frames" --mosaic 4 --global-batch-size 16 --lr 4e-4 \
  --warmup-steps 50 --ema-decay 0.99 --max-steps "$MOSAIC_STEPS"
launch autoregressive.train.export --ckpt "$out/tokenizer" --output "$vq" --precision half

launch tokenizer.extract_codes --data-path "$out/grids" --code-path "$out/codes" --vq-ckpt "$vq" --mixed-precision bf16
NPROC=1 launch autoregressive.train.train_c2i --code-path "$out/codes" --results-dir "$out/gpt" --gpt-model GPT-XS \
  --global-batch-size 4 --optimizer muon --lr 1e-3 --lr-schedule cosine --warmup-steps 100 --ema-decay 0.998 \
  --dropout-p 0 --token-dropout-p 0.1 --max-steps "$GPT_STEPS"
launch autoregressive.train.export --ckpt "$out/gpt" --output "$gpt" --precision half --no-averaged

NPROC=1 launch evaluations.probe --data-path "$out/grids" --results-dir "$out/probe" --global-batch-size 32 --lr 2e-3 \
  --lr-schedule cosine --warmup-steps 50 --max-steps "$PROBE_STEPS" --sample-every 0
launch autoregressive.train.export --ckpt "$out/probe" --output "$probe" --precision half

launch tokenizer.reconstruct --data-path "$out/grids" --vq-ckpt "$vq" --save-path "$out/reconstructed"
launch autoregressive.sample.sample_c2i --gpt-ckpt "$gpt" --vq-ckpt "$vq" --save-folder "$out/samples" --clips-per-class \
  "$SAMPLES"
launch evaluations.probe_report --probe "$probe" --data-path "$out/grids" --reconstruction-path "$out/reconstructed" \
  --sample-path "$out/samples"
