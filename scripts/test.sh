#!/usr/bin/env bash
# Set up and run the tests:  bash scripts/test.sh [pytest arguments]; -m '' also runs whole chains of commands
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"
exec "$python" -m pytest "$@"
