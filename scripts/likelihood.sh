#!/usr/bin/env bash
# Classes by the GPT's likelihood:  bash scripts/likelihood.sh --code-path CODES --gpt-ckpt RUN --output OUT [flags]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch evaluations.likelihood "$@"
