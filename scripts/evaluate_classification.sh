#!/usr/bin/env bash
# What are synthetic clips good for in classification?
#   bash scripts/evaluate_classification.sh --data-path GRIDS --sample-path CLIPS --results-dir OUT [flags]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch evaluations.classification "$@"
