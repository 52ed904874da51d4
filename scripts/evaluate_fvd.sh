#!/usr/bin/env bash
# FVD of generated clips:  bash scripts/evaluate_fvd.sh --data-path GRIDS --sample-path CLIPS [flags]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch evaluations.fvd "$@"
