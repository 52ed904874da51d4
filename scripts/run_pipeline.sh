#!/usr/bin/env bash
# From a folder of videos to generated clips, every stage:  bash scripts/run_pipeline.sh [VIDEOS] OUT
# VIDEOS holds one folder per class; without it a phantom is rendered. Rerun the same command to continue. The defaults
# take one to two hours on two CPU cores; every capitalised name below can be set in the environment:
#   GPT_STEPS=20000 bash scripts/run_pipeline.sh videos out
set -euo pipefail
[ $# -ge 1 ] && [ $# -le 2 ] || { echo "usage: $0 [VIDEOS] OUT" >&2; exit 2; }
out=${*: -1}
out=${out/#-/./-}  # no flag, also to find
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

: "${ROWS:=4}" "${COLS:=4}" "${FRAME_SIZE:=128}" "${FPS:=10}" "${CLIP_STRIDE:=2}"  # clips overlap: small data
: "${RECORDING_PATTERN:=(.*)}"                                   # first group = recording, see dataset.prepare
if [ -z "${CH:-}${CH_MULT:-}${CODEBOOK_SIZE:-}" ]; then           # other sizes start from nothing, and need more steps
  : "${VQ_CKPT=$root/pretrained_models/endogen_phantom_vq.safetensors}"  # knows the colours of tissue; may be empty
fi
disc_start=0
[ -n "${VQ_CKPT:-}" ] || disc_start=$((${VQ_STEPS:-500} / 2))     # first pictures, then sharp ones
: "${CH:=16}" "${CH_MULT:=1 2 4 8 8}" "${CODEBOOK_SIZE:=1024}"    # tokenizer: 16 px per token
: "${WINDOW:=2}" "${VQ_STEPS:=500}" "${VQ_BATCH:=2}"              # trained on WINDOW x WINDOW frames at once
: "${GPT_MODEL:=GPT-XS}" "${GPT_BATCH:=4}" "${GPT_STEPS:=300}"
: "${BALANCE_STEPS:=200}" "${ROW_STEPS:=150}" "${LAST_STEPS:=150}"
if [ "$GPT_MODEL $CODEBOOK_SIZE" = "GPT-XS 1024" ]; then
  : "${GPT_CKPT=$root/pretrained_models/endogen_phantom_gpt.safetensors}"  # knows how frames follow each other; may be empty
fi
: "${CLIPS_PER_CLASS:=4}" "${CFG_SCALE:=2}" "${TEMPERATURE:=0.5}" "${SEED:=0}"  # few clips: the likely ones alone are good
: "${PHANTOM_RECORDINGS:=16}"                                     # per class, of 48 frames

trap 'exit 130' INT TERM

finished() {  # finished RUN STEPS: a training that a signal ended has saved and said so, but is no whole one
  local newest
  newest=$(find "$1/checkpoints" -name '[0-9]*.pt' -printf '%f\n' | sort | tail -n 1)
  [ "$((10#${newest%.pt}))" -ge "$2" ] || exit 130
}

if [ $# -eq 2 ]; then
  videos=$1
else
  videos=$out/videos
  launch dataset.phantom --video-path "$videos" --clips-per-class "$PHANTOM_RECORDINGS" --frames 48 \
    --size "$FRAME_SIZE" --fps "$FPS" --seed "$SEED"
fi

launch dataset.prepare --video-path "$videos" --data-path "$out/grids" --rows "$ROWS" --cols "$COLS" \
  --frame-size "$FRAME_SIZE" --fps "$FPS" --clip-stride "$CLIP_STRIDE" --recording-pattern "$RECORDING_PATTERN"

# All losses at once: pixels and colour for what is where, features of Lite0 and an adversary for sharp pictures.
# shellcheck disable=SC2086  # CH_MULT is a list
NPROC=1 launch tokenizer.train_vq --data-path "$out/grids" --results-dir "$out/tokenizer" ${VQ_CKPT:+--vq-ckpt "$VQ_CKPT"} \
  --ch "$CH" --ch-mult $CH_MULT --z-channels 64 --num-res-blocks 1 --codebook-size "$CODEBOOK_SIZE" --window "$WINDOW" \
  --global-batch-size "$VQ_BATCH" --lr 3e-4 --lr-schedule cosine --warmup-steps 20 --weight-decay 0.01 --ema-decay 0.98 \
  --colour-weight 1 --perceptual lite0 --perceptual-weight 0.5 --disc-weight 0.5 --disc-start "$disc_start" --disc-width 32 \
  --max-steps "$VQ_STEPS" --global-seed "$SEED"
finished "$out/tokenizer" "$VQ_STEPS"

launch tokenizer.extract_codes --data-path "$out/grids" --code-path "$out/codes" --vq-ckpt "$out/tokenizer" --flip

train_gpt() {  # train_gpt RUN STEPS FLAGS
  NPROC=1 launch autoregressive.train.train_c2i --code-path "$out/codes" --results-dir "$out/$1" --gpt-model "$GPT_MODEL" \
    --optimizer muon --lr-schedule cosine --ema-decay 0.95 --max-steps "$2" --eval-every "$2" --global-seed "$SEED" "${@:3}"
  finished "$out/$1" "$2"
  before=$1
}

# First the clips as they come, then every class equally often: drawn often from the start, the few clips of a rare
# class are learnt by heart before the model finds out how frames follow each other. What a clip shows is decided in its
# first row of frames.
train_gpt gpt_first "$GPT_STEPS" ${GPT_CKPT:+--gpt-ckpt "$GPT_CKPT"} --lr 1e-3 --warmup-steps 20 \
  --global-batch-size "$GPT_BATCH"
even_classes() {  # even_classes RUN STEPS CLIPS FLAGS: goes on from the run before
  train_gpt "$1" "$2" --gpt-ckpt "$out/$before" --class-balance --warmup-steps 10 --global-batch-size "$3" "${@:4}"
}
no_dropout=(--dropout-p 0 --token-dropout-p 0.1)
even_classes gpt_even "$BALANCE_STEPS" "$GPT_BATCH" --lr 5e-4
even_classes gpt_rows "$ROW_STEPS" $((4 * GPT_BATCH)) --lr 1e-3 --first-rows 1 "${no_dropout[@]}"
even_classes gpt "$LAST_STEPS" "$GPT_BATCH" --lr 7e-4 "${no_dropout[@]}"

launch autoregressive.sample.sample_c2i --gpt-ckpt "$out/gpt" --save-folder "$out/samples" \
  --clips-per-class "$CLIPS_PER_CLASS" --seed "$SEED" --cfg-scale "$CFG_SCALE" --temperature "$TEMPERATURE"

launch evaluations.class_consistency --data-path "$out/grids" --sample-path "$out/samples"
echo "open $out/samples/index.html"
