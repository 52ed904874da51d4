#!/usr/bin/env bash
# All metrics of generated clips:  bash scripts/evaluate.sh --data-path GRIDS --sample-path CLIPS [flags]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch evaluations.evaluate "$@"
