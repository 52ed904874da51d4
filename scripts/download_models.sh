#!/usr/bin/env bash
# Released weights into pretrained_models/:  bash scripts/download_models.sh hyperkvasir|surgvisdom|llamagen [flags]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch common.download "$@"
