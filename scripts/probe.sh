#!/usr/bin/env bash
# Train the video probe:  bash scripts/probe.sh --data-path GRIDS --results-dir RUN
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch evaluations.probe "$@"
