# Sourced by every script: finds or makes the Python environment, and defines `launch MODULE [flags]`.
# The environment is $ENDOGEN_VENV if that is set, else the active one if it has all of requirements.txt, else .venv.
# shellcheck shell=bash
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

satisfied() {  # does this python have every pinned package?
  "$1" - "$root/requirements.txt" 2>/dev/null <<'PY'
import sys
from importlib.metadata import version
from packaging.requirements import Requirement
lines = [line for line in open(sys.argv[1]).read().splitlines() if "==" in line]
wanted = [pin for pin in map(Requirement, lines) if pin.marker is None or pin.marker.evaluate()]
sys.exit(not all(pin.specifier.contains(version(pin.name)) for pin in wanted))
PY
}

make_venv() {  # make_venv FOLDER: create it and install requirements.txt; a stamp marks it as complete
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    { echo "error: EndoGen needs python3, version 3.10 or newer, on the PATH" >&2; exit 2; }
  echo "setting up the environment in $1 (once, a few minutes)" >&2
  python3 -m venv "$1" && "$1/bin/python" -m pip install --quiet --disable-pip-version-check \
    --requirement "$root/requirements.txt" >&2 || { echo "error: could not set up $1" >&2; exit 2; }
  cp "$root/requirements.txt" "$1/endogen-requirements.txt"
}

if [ -z "${ENDOGEN_VENV:-}" ] && command -v python >/dev/null && satisfied python; then
  python=$(command -v python)
else
  venv=$(realpath -m "${ENDOGEN_VENV:-$root/.venv}")
  python=$venv/bin/python
  cmp --silent "$root/requirements.txt" "$venv/endogen-requirements.txt" || satisfied "$python" || make_venv "$venv"
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

launch() {  # one process, or with NPROC=n that many under torchrun
  if [ "${NPROC:-1}" -gt 1 ]; then
    "$python" -m torch.distributed.run --standalone --nproc-per-node "$NPROC" -m "$@"
  else
    "$python" -m "$@"
  fi
}
