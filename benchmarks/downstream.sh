#!/usr/bin/env bash
# What are annotated and synthetic clips good for? The evidence of RESULTS.md:
#   bash benchmarks/downstream.sh OUT KVASIR_SEG [STAGE ...]      stages: phantom polyps stills labels clips; default all
# KVASIR_SEG is the unpacked data set (https://datasets.simula.no/kvasir-seg). About six hours on two CPU cores; the same
# command continues. Stages need nothing of each other, but polyps takes the clips of phantom.
set -euo pipefail
usage="usage: $0 OUT KVASIR_SEG [STAGE ...]"
out=$(realpath -m -- "${1:?"$usage"}") kvasir=$(realpath -- "${2:?"$usage"}")
stages=("${@:3}")
[ ${#stages[@]} -gt 0 ] || stages=(phantom polyps stills labels clips)
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/env.sh"
bundled=$root/pretrained_models/endogen_phantom
vq=${bundled}_vq.safetensors

prepare() { launch dataset.prepare --video-path "$2" --data-path "$1/grids" --frame-size 128 "${@:3}"; }  # FOLDER VIDEOS [flags]
encode() { launch tokenizer.extract_codes --data-path "$2" --code-path "$1/codes" --vq-ckpt "$vq"; }  # FOLDER GRIDS
train_gpt() {  # train_gpt FOLDER SEED [flags]: from the bundled GPT, on the folder's codes
  launch autoregressive.train.train_c2i --code-path "$1/codes" --results-dir "$1/gpt-$2" --global-seed "$2" \
    --gpt-model GPT-XS --gpt-ckpt "${bundled}_gpt.safetensors" --vq-ckpt "$vq" --optimizer muon --lr 1e-3 \
    --lr-schedule cosine --warmup-steps 30 --ema-decay 0.99 --dropout-p 0 --token-dropout-p 0.1 --sample-every 0 \
    --log-every 25 "${@:3}"
}
train() {  # train FOLDER [flags]: grids to codes to the GPTs of two seeds
  encode "$1" "$1/grids"
  for seed in 0 1; do train_gpt "$1" $seed "${@:2}"; done
}
sample() {  # sample FOLDER [flags]: clips of both, and in "filtered" those that are no near-copies of training clips
  for seed in 0 1; do
    launch autoregressive.sample.sample_c2i --gpt-ckpt "$1/gpt-$seed" --save-folder "$1/samples-$seed" "${@:2}"
    launch evaluations.filter_copies --data-path "$1/grids" --sample-path "$1/samples-$seed" --save-path "$1/filtered-$seed"
  done
}
gpt_segments() {
  launch benchmarks.gpt_segments --data-path "$1/grids" --gpt-ckpt "$1/gpt-0" --results-dir "$1/segments" --clips "$2"
}
compare() {  # compare OUTPUT [flags]
  launch evaluations.segmentation --output "$1" --quick --steps 200 --seeds 5 --labels 25 100 400 "${@:2}"
}

# Clips of 8 frames and 8 masks. Generated ones are judged by a network that learnt from renders, then train one.
phantom() {
  local own=$out/phantom
  launch dataset.phantom --video-path "$own/videos" --clips-per-class 320 --frames 8 --fps 12 --view octagon --masks --seed 2000
  prepare "$own" "$own/videos" --masks "$own/videos_masks" --rows 4 --cols 4 --fps 12 --crop none
  train "$own" --global-batch-size 4 --max-steps 600 --eval-every 200 --val-clips 32
  gpt_segments "$own" 32
  sample "$own" --clips-per-class 12 --cfg-scale 4 --temperature 0.85
  local labelled=$own/labelled  # clips that the generator has not seen; renders look alike without being copies
  launch dataset.phantom --video-path "$labelled/videos" --clips-per-class 40 --frames 8 --fps 12 --view octagon --masks --seed 4000
  prepare "$labelled" "$labelled/videos" --masks "$labelled/videos_masks" --rows 4 --cols 4 --fps 12 --crop none
  launch tokenizer.reconstruct --data-path "$labelled/grids" --save-path "$labelled/rebuilt" --vq-ckpt "$vq" --split all
  compare "$own/generated_masks" --data-path "$labelled/grids" --twin-cosine 0.95 --test-path "$own/filtered-0" \
    --arms copy real --labels 400
  compare "$own/segmentation" --data-path "$labelled/grids" --twin-cosine 0.95 --generator-data "$own/grids" \
    --synthetic-path "$own"/filtered-[01] --reconstruction-path "$labelled/rebuilt" \
    --arms constant copy real strong reconstructions synthetic
}

# Rendered polyps as training data for real ones: no generator, no real label beside the N.
polyps() {
  local own=$out/polyps class
  mkdir -p "$own/videos" "$own/masks"
  for class in pedunculated_polyp sessile_polyp; do
    ln -sfn "$out/phantom/videos/$class" "$own/videos/$class"
    ln -sfn "$out/phantom/videos_masks/$class" "$own/masks/$class"
  done
  prepare "$own" "$own/videos" --masks "$own/masks" --rows 4 --cols 4 --fps 12 --crop none
  compare "$own/segmentation" --data-path "$kvasir" --synthetic-path "$own/grids" --arms constant copy real synthetic
}

# Kvasir-SEG: the bundled tokenizer has seen 900 of its pictures. The other 100 are for test and validation; no generator
# is trained, and none of its settings chosen, with them.
link() {  # link FOLDER COUNT KIND ...: the first pictures that the tokenizer has seen, in FOLDER/KIND/polyp
  local names name kind
  mkdir -p "$out/kvasir/videos" && ln -sfn "$kvasir/images" "$out/kvasir/videos/polyp"
  prepare "$out/kvasir" "$out/kvasir/videos" --rows 1 --cols 1
  mapfile -t names < <("$python" - "$out/kvasir/grids" "$2" <<'PY'
import sys
from pathlib import Path
from dataset.manifest import Manifest
clips = Manifest.read(Path(sys.argv[1])).select("train")[: int(sys.argv[2])]
print("\n".join(clip.recording.split("/")[1] for clip in clips))
PY
)
  for kind in "${@:3}"; do
    mkdir -p "$1/$kind/polyp"
    for name in "${names[@]}"; do ln -sfn "$kvasir/$kind/$name".* "$1/$kind/polyp/"; done
  done
}

compare_kvasir() {  # compare_kvasir FOLDER [flags]: tested on about 70 of the 100 pictures
  compare "$1/segmentation" --data-path "$kvasir" --generator-data "$out/kvasir/grids" --synthetic-path "$1"/filtered-[01] \
    --test-fraction 0.07 --val-fraction 0.02 "${@:2}"
}

# By a generator that knows no label: a teacher labels what it draws.
stills() {
  local own=$out/stills
  link "$own" 900 images
  prepare "$own" "$own/images" --rows 1 --cols 1
  train "$own" --global-batch-size 64 --max-steps 150 --eval-every 25 --val-clips 90
  sample "$own" --clips-per-class 1600
  launch tokenizer.reconstruct_pictures --picture-path "$kvasir/images" --save-path "$own/rebuilt" --vq-ckpt "$vq"
  compare_kvasir "$own" --reconstruction-path "$own/rebuilt" \
    --arms copy real strong reconstructions synthetic_unlabelled real_unlabelled
}

# By a generator that draws masks and has 400 labels, mostly others than the 400 of a seed: together about 600.
labels() {
  local own=$out/labels
  link "$own" 400 images masks
  prepare "$own" "$own/images" --masks "$own/masks" --rows 1 --cols 2
  train "$own" --global-batch-size 32 --max-steps 150 --eval-every 25 --val-clips 40
  gpt_segments "$own" 40
  sample "$own" --clips-per-class 1600
  compare_kvasir "$own" --labels 400 --arms copy real synthetic
}

# Clips of the bundled model, and of one trained on from it, as training data for a classifier of rendered clips that
# neither has seen.
clips() {
  local own=$out/clips
  launch dataset.phantom --video-path "$own/videos" --clips-per-class 120 --frames 16 --fps 12 --view octagon --seed 3000
  prepare "$own" "$own/videos" --preset phantom --crop none --val-fraction 0.3
  launch dataset.phantom --video-path "$own/seen/videos" --clips-per-class 640 --frames 16 --fps 12 --view octagon
  prepare "$own/seen" "$own/seen/videos" --preset phantom --crop none
  encode "$own" "$own/seen/grids"
  train_gpt "$own" 1 --global-batch-size 4 --max-steps 200 --eval-every 100 --val-clips 32
  launch autoregressive.sample.sample_c2i --model phantom --save-folder "$own/samples-0" --clips-per-class 24
  launch autoregressive.sample.sample_c2i --gpt-ckpt "$own/gpt-1" --save-folder "$own/samples-1" --clips-per-class 24 \
    --cfg-scale 4 --temperature 0.85
  for i in 0 1; do
    launch evaluations.filter_copies --data-path "$own/seen/grids" --sample-path "$own/samples-$i" --save-path "$own/filtered-$i"
  done
  launch evaluations.classification --data-path "$own/grids" --generator-data "$own/seen/grids" \
    --sample-path "$own"/filtered-[01] --results-dir "$own/classification" --recordings-per-class 5 20 80 \
    --seeds 5 --unit frames --size 128 --max-steps 200
}

for stage in "${stages[@]}"; do
  case $stage in
    phantom | polyps | stills | labels | clips) "$stage" ;;
    *) echo "$usage" >&2 && exit 2 ;;
  esac
done
