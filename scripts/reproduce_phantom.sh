#!/usr/bin/env bash
# The bundled models from nothing:  bash scripts/reproduce_phantom.sh OUT [KVASIR_SEG]
# KVASIR_SEG is the unpacked data set (https://datasets.simula.no/kvasir-seg, CC BY 4.0); without it the tokenizer
# learns from the phantom alone. Several hours on two CPU cores; rerun the same command to continue. Leaves the weights
# of pretrained_models/ in OUT/model, with the probe's report on the clips that they make in OUT/samples.
set -euo pipefail
usage="usage: $0 OUT [KVASIR_SEG]"
out=${1:?"$usage"} kvasir=${2:-}
out=${out/#-/./-}  # no flag, also to mkdir
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

: "${CLIPS:=640}" "${PROBE_STEPS:=1000}"
: "${VQ_STEPS:=1500}" "${VQ_WINDOW_STEPS:=800}" "${DECODER_STEPS:=1000}"  # frames, 2 x 2 frames, decoder alone
: "${GPT_STEPS:=1800}" "${FIRST_ROW_STEPS:=800}" "${LAST_GPT_STEPS:=520}"  # clips, their first rows of frames, clips
: "${SWEEP_SAMPLES:=8}" "${SAMPLES:=50}"  # clips per class of each setting of the sweep, and of the report
: "${CFG_SCALES:=2 4 6}" "${TEMPERATURES:=0.8 0.9}"
vq=$out/model/endogen_phantom_vq.safetensors base=$out/before/endogen_phantom_vq.safetensors
gpt=$out/model/endogen_phantom_gpt.safetensors
probe=$out/model/endogen_phantom_probe.safetensors

launch dataset.phantom --video-path "$out/videos" --clips-per-class "$CLIPS" --frames 16 --fps 12 --view octagon
launch dataset.prepare --video-path "$out/videos" --data-path "$out/grids" --preset phantom --crop none
pictures=("$out/grids") share=(1)
if [ -n "$kvasir" ]; then
  mkdir -p "$out/stills" && ln -sfn "$(realpath -- "$kvasir/images")" "$out/stills/polyp"
  launch dataset.prepare --video-path "$out/stills" --data-path "$out/kvasir" --rows 1 --cols 1 --frame-size 128
  pictures+=("$out/kvasir") share=(0.75 0.25)
fi

train_vq() {
  NPROC=1 launch tokenizer.train_vq --data-path "${pictures[@]}" --data-share "${share[@]}" --lr 5e-4 \
    --lr-schedule cosine --weight-decay 0.01 --ema-decay 0.98 "$@"
}
train_vq --results-dir "$out/tokenizer_frames" --ch 16 --ch-mult 1 2 4 8 8 --z-channels 64 --num-res-blocks 1 \
  --codebook-size 1024 --window 1 --global-batch-size 16 --warmup-steps 100 --max-steps "$VQ_STEPS"
train_vq --results-dir "$out/tokenizer" --vq-ckpt "$out/tokenizer_frames" --window 2 --global-batch-size 4 \
  --warmup-steps 20 --colour-weight 2 --max-steps "$VQ_WINDOW_STEPS"
# Half precision makes other codes, as it warns: they are extracted with this file.
launch autoregressive.train.export --ckpt "$out/tokenizer" --output "$base" --precision half
launch tokenizer.extract_codes --data-path "$out/grids" --code-path "$out/codes" --vq-ckpt "$base"

# Codes stay what they are while the decoder alone learns to draw them sharply. The mean with the decoder before is nearly
# as sharp, and has fewer specks.
NPROC=1 launch tokenizer.train_vq --data-path "${pictures[@]}" --data-share "${share[@]}" --results-dir "$out/decoder" \
  --vq-ckpt "$base" --trained-part decoder --code-noise 0.05 --window 2 --global-batch-size 2 --lr 3e-4 \
  --lr-schedule cosine --warmup-steps 20 --weight-decay 0.01 --ema-decay 0.995 --colour-weight 1 --perceptual lite0 \
  --perceptual-weight 0.5 --disc-weight 0.5 --disc-start 0 --disc-width 32 --max-steps "$DECODER_STEPS"
launch autoregressive.train.export --ckpt "$out/decoder" --average-with "$base" --share 0.7 --output "$vq" --precision half

# What a clip shows is decided in its first row of frames: a quarter of the tokens, and a fifth of the work.
train_gpt() {
  NPROC=1 launch autoregressive.train.train_c2i --code-path "$out/codes" --gpt-model GPT-XS --optimizer muon \
    --lr-schedule cosine --ema-decay 0.99 --dropout-p 0 --token-dropout-p 0.1 "$@"
}
train_gpt --results-dir "$out/gpt_clips" --global-batch-size 4 --lr 1e-3 --warmup-steps 100 --max-steps "$GPT_STEPS"
train_gpt --results-dir "$out/gpt_rows" --gpt-ckpt "$out/gpt_clips" --first-rows 1 --global-batch-size 16 --lr 2e-3 \
  --warmup-steps 30 --max-steps "$FIRST_ROW_STEPS"
train_gpt --results-dir "$out/gpt" --gpt-ckpt "$out/gpt_rows" --global-batch-size 4 --lr 1e-3 --warmup-steps 20 \
  --max-steps "$LAST_GPT_STEPS"
launch autoregressive.train.export --ckpt "$out/gpt" --output "$gpt" --precision half

NPROC=1 launch evaluations.probe --data-path "$out/grids" --results-dir "$out/probe" --global-batch-size 32 --lr 2e-3 \
  --lr-schedule cosine --warmup-steps 50 --max-steps "$PROBE_STEPS" --sample-every 0
launch autoregressive.train.export --ckpt "$out/probe" --output "$probe" --precision half

launch tokenizer.reconstruct --data-path "$out/grids" --vq-ckpt "$vq" --save-path "$out/reconstructed"
report() {  # report FOLDER CLIPS_PER_CLASS [sampler flags]
  launch autoregressive.sample.sample_c2i --gpt-ckpt "$gpt" --vq-ckpt "$vq" --save-folder "$1" --clips-per-class "$2" "${@:3}"
  launch evaluations.class_consistency --probe "$probe" --data-path "$out/grids" --reconstruction-path "$out/reconstructed" \
    --sample-path "$1"
}
# The demo's guidance and temperature in pretrained_models/registry.json come from this sweep, other seeds than the report's.
for cfg in $CFG_SCALES; do
  for temperature in $TEMPERATURES; do
    echo "guidance $cfg, temperature $temperature"
    report "$out/sweep/$cfg-$temperature" "$SWEEP_SAMPLES" --cfg-scale "$cfg" --temperature "$temperature" --seed 1000
  done
done
report "$out/samples" "$SAMPLES" --cfg-scale 4 --temperature 0.85  # as in registry.json
