#!/usr/bin/env bash
# Clips without near-copies of training clips:
#   bash scripts/filter_copies.sh --data-path GRIDS --sample-path CLIPS --save-path FILTERED [flags]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch evaluations.filter_copies "$@"
