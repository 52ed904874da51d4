#!/usr/bin/env bash
# GPT -> clips:  bash scripts/sample_c2i.sh --gpt-ckpt RUN --save-folder CLIPS [flags]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch autoregressive.sample.sample_c2i "$@"
