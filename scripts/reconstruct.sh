#!/usr/bin/env bash
# Grid pictures -> reconstructions and their quality:  bash scripts/reconstruct.sh --data-path GRIDS --vq-ckpt TOKENIZER --save-path OUT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch tokenizer.reconstruct "$@"
