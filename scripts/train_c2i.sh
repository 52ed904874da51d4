#!/usr/bin/env bash
# Codes -> GPT:  bash scripts/train_c2i.sh --code-path CODES --results-dir RUN [flags]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch autoregressive.train.train_c2i "$@"
