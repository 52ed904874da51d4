#!/usr/bin/env bash
# Prepared data set -> the Hugging Face Hub:  bash scripts/push_data.sh --data-path GRIDS --push-to-hub OWNER/NAME --licence NAME
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch dataset.push "$@"
