#!/usr/bin/env bash
# What are synthetic clips good for in segmentation?
#   bash scripts/evaluate_segmentation.sh --data-path LABELLED --synthetic-path CLIPS --output RESULTS [flags]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch evaluations.segmentation "$@"
