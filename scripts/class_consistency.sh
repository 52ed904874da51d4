#!/usr/bin/env bash
# Do the clips show their class?
#   bash scripts/class_consistency.sh --data-path GRIDS --sample-path CLIPS [--probe RUN] [flags]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch evaluations.class_consistency "$@"
