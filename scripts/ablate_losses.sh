#!/usr/bin/env bash
# Losses of the tokenizer compared:  bash scripts/ablate_losses.sh --data-path GRIDS --results-dir OUT [flags]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch benchmarks.ablate_losses "$@"
