#!/usr/bin/env bash
# Samples in the eyes of the probe:
#   bash scripts/probe_report.sh --probe PROBE --data-path GRIDS --reconstruction-path RECONSTRUCTED --sample-path SAMPLES
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch evaluations.probe_report "$@"
