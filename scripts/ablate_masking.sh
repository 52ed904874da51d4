#!/usr/bin/env bash
# Token masking compared:  bash scripts/ablate_masking.sh --data-path GRIDS --code-path CODES --results-dir OUT [flags]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch benchmarks.ablate_masking "$@"
