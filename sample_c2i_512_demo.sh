#!/usr/bin/env bash
# Set up and sample one clip of every class into demo_endogen/:  bash sample_c2i_512_demo.sh [sampler flags]
# Uses the models in pretrained_models/, or those given with --gpt-ckpt and --vq-ckpt.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/env.sh"
launch autoregressive.sample.sample_c2i --save-folder demo_endogen "$@"
