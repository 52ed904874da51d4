#!/usr/bin/env bash
# Rendered videos in place of real ones:  bash scripts/phantom.sh --video-path VIDEOS [flags]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch dataset.phantom "$@"
