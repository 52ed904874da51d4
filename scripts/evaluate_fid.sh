#!/usr/bin/env bash
# FID of generated clips:  bash scripts/evaluate_fid.sh --data-path GRIDS --sample-path CLIPS [flags]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch evaluations.fid "$@"
