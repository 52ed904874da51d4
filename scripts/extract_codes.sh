#!/usr/bin/env bash
# Grid pictures -> codes:  bash scripts/extract_codes.sh --data-path GRIDS --code-path CODES --vq-ckpt FILE [flags]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch tokenizer.extract_codes "$@"
