#!/usr/bin/env bash
# Codes -> GPT, a copy of the model on every GPU:
#   bash scripts/train_c2i_ddp.sh --code-path CODES --results-dir RUN [flags]      every GPU here, or NPROC=n
#   bash scripts/train_c2i_ddp.sh --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -- \
#     --code-path CODES --results-dir RUN [flags]     on each machine; before the -- stands what torchrun takes
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch_nodes autoregressive.train.train_c2i "$@" --data-parallel ddp
