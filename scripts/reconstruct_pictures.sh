#!/usr/bin/env bash
# Pictures -> the same after the tokenizer:  bash scripts/reconstruct_pictures.sh --picture-path PICTURES --vq-ckpt TOKENIZER --save-path OUT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch tokenizer.reconstruct_pictures "$@"
