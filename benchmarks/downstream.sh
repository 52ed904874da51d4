#!/usr/bin/env bash
# What are annotated and synthetic clips good for? The evidence of RESULTS.md:
#   bash benchmarks/downstream.sh OUT KVASIR_SEG [STAGE ...]      stages: phantom polyps stills labels clips; default all
# KVASIR_SEG is the unpacked data set (https://datasets.simula.no/kvasir-seg). About three hours on two CPU cores; the same
# command continues. Stages need nothing of each other, but polyps takes the clips of phantom.
set -euo pipefail
usage="usage: $0 OUT KVASIR_SEG [STAGE ...]"
out=$(realpath -m -- "${1:?"$usage"}") kvasir=$(realpath -- "${2:?"$usage"}")
stages=("${@:3}")
[ ${#stages[@]} -gt 0 ] || stages=(phantom polyps stills labels clips)
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/env.sh"
bundled=$root/pretrained_models/endogen_phantom
vq=${bundled}_vq.safetensors

prepare() { launch dataset.prepare --video-path "$1/videos" --data-path "$1/grids" --frame-size 128 "${@:2}"; }
train() {  # train FOLDER [flags]: grids to codes to a GPT, from the bundled one
  launch tokenizer.extract_codes --data-path "$1/grids" --code-path "$1/codes" --vq-ckpt "$vq"
  launch autoregressive.train.train_c2i --code-path "$1/codes" --results-dir "$1/gpt" --gpt-model GPT-XS \
    --gpt-ckpt "${bundled}_gpt.safetensors" --vq-ckpt "$vq" --optimizer muon --lr 1e-3 --lr-schedule cosine --warmup-steps 30 \
    --ema-decay 0.99 --dropout-p 0 --token-dropout-p 0.1 --sample-every 0 --log-every 25 "${@:2}"
}
sample() { launch autoregressive.sample.sample_c2i --gpt-ckpt "$1/gpt" --save-folder "$1/samples" "${@:2}"; }
gpt_segments() {
  launch benchmarks.gpt_segments --data-path "$1/grids" --gpt-ckpt "$1/gpt" --results-dir "$1/segments" --clips "$2"
}
compare() {  # compare OUTPUT [flags]
  launch evaluations.segmentation --output "$1" --quick --labels 25 100 400 --seeds 2 "${@:2}"
}

# Clips of 8 frames and 8 masks. Generated ones are judged by a network that learnt from renders, then train one.
phantom() {
  local own=$out/phantom
  launch dataset.phantom --video-path "$own/videos" --clips-per-class 320 --frames 8 --fps 12 --view octagon --masks --seed 2000
  prepare "$own" --masks "$own/videos_masks" --rows 4 --cols 4 --fps 12 --crop none
  train "$own" --global-batch-size 4 --max-steps 600 --eval-every 200 --val-clips 32
  gpt_segments "$own" 32
  sample "$own" --clips-per-class 12 --cfg-scale 4 --temperature 0.85
  compare "$own/generated_masks" --data-path "$own/grids" --test-path "$own/samples" --arms copy real --labels 400
  compare "$own/segmentation" --data-path "$own/grids" --generator-data "$own/grids" --synthetic-path "$own/samples" \
    --arms constant copy real synthetic
}

# Rendered polyps as training data for real ones: no generator, no real label beside the N.
polyps() {
  local own=$out/polyps class
  mkdir -p "$own/videos" "$own/masks"
  for class in pedunculated_polyp sessile_polyp; do
    ln -sfn "$out/phantom/videos/$class" "$own/videos/$class"
    ln -sfn "$out/phantom/videos_masks/$class" "$own/masks/$class"
  done
  prepare "$own" --masks "$own/masks" --rows 4 --cols 4 --fps 12 --crop none
  compare "$own/segmentation" --data-path "$kvasir" --synthetic-path "$own/grids" --arms constant copy real strong synthetic
}

# Kvasir-SEG by a generator without labels. The bundled tokenizer has seen all but the 100 pictures that are val here.
stills() {
  local own=$out/stills
  mkdir -p "$own/videos" && ln -sfn "$kvasir/images" "$own/videos/polyp"
  prepare "$own" --rows 1 --cols 1
  train "$own" --global-batch-size 64 --max-steps 250 --eval-every 50 --val-clips 100
  sample "$own" --clips-per-class 1600
  compare "$own/segmentation" --data-path "$kvasir" --generator-data "$own/grids" --synthetic-path "$own/samples" \
    --test-fraction 0.07 --val-fraction 0.02 --arms copy real synthetic_unlabelled real_unlabelled
}

# Kvasir-SEG with masks by a generator that has 400 labels and no more, so that N = 400 rests on the same labels.
labels() {
  local own=$out/labels names name
  mapfile -t names < <("$python" - "$out/stills/grids" <<'PY'
import sys
from pathlib import Path
from dataset.manifest import Manifest
clips = Manifest.read(Path(sys.argv[1]))
some = clips.select("train")[:400] + clips.select("val")
print("\n".join(clip.recording.split("/")[1] for clip in some))
PY
)
  mkdir -p "$own/videos/polyp" "$own/masks/polyp"
  for name in "${names[@]}"; do
    ln -sfn "$kvasir/images/$name".* "$own/videos/polyp/"
    ln -sfn "$kvasir/masks/$name".* "$own/masks/polyp/"
  done
  prepare "$own" --masks "$own/masks" --rows 1 --cols 2 --val-fraction 0.2
  train "$own" --global-batch-size 32 --max-steps 250 --eval-every 50 --val-clips 100
  gpt_segments "$own" 100
  sample "$own" --clips-per-class 800
  compare "$own/segmentation" --data-path "$own/grids" --generator-data "$own/grids" --synthetic-path "$own/samples" \
    --test-fraction 0.14 --val-fraction 0.04 --arms copy real synthetic
}

# Clips of the bundled model as training data for a classifier of rendered clips that it has not seen.
clips() {
  local own=$out/clips
  launch dataset.phantom --video-path "$own/videos" --clips-per-class 120 --frames 16 --fps 12 --view octagon --seed 3000
  prepare "$own" --preset phantom --crop none --val-fraction 0.3
  launch autoregressive.sample.sample_c2i --model phantom --save-folder "$own/samples" --clips-per-class 40
  launch evaluations.classification --data-path "$own/grids" --sample-path "$own/samples" --results-dir "$own/classification" \
    --recordings-per-class 5 20 80 --seeds 3 --unit frames --size 128 --max-steps 200
}

for stage in "${stages[@]}"; do
  case $stage in
    phantom | polyps | stills | labels | clips) "$stage" ;;
    *) echo "$usage" >&2 && exit 2 ;;
  esac
done
