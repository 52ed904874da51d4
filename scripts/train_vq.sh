#!/usr/bin/env bash
# Grid pictures -> tokenizer:  bash scripts/train_vq.sh --data-path GRIDS --results-dir RUN [flags]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch tokenizer.train_vq "$@"
