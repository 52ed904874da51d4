#!/usr/bin/env bash
# Videos -> grid pictures:  bash scripts/prepare.sh --video-path VIDEOS --data-path GRIDS [flags]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch dataset.prepare "$@"
