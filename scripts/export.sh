#!/usr/bin/env bash
# Checkpoint -> files to share:  bash scripts/export.sh --ckpt RUN --output NAME.safetensors|NAME.pt
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch autoregressive.train.export "$@"
