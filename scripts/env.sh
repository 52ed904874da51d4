# Sourced by every script: finds or makes the Python environment, and defines `launch MODULE [flags]`.
# The environment is $ENDOGEN_VENV if that is set, else the active one if it has all of requirements.txt, else .venv.
# shellcheck shell=bash
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONSAFEPATH=1  # modules come from here, not from the working directory

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
  venv=$(realpath -m -- "${ENDOGEN_VENV:-$root/.venv}")
  python=$venv/bin/python
  cmp --silent "$root/requirements.txt" "$venv/endogen-requirements.txt" || satisfied "$python" || make_venv "$venv"
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
# Every step needs the same large buffers. glibc would give them back to the system and fetch them anew, page by page,
# which takes a sixth of a tokenizer's training step on a CPU.
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-8589934592}"
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-8589934592}"

launch() {  # one process, or with NPROC=n that many under torchrun
  if [ "${NPROC:-1}" -gt 1 ]; then
    launch_many --standalone --nproc-per-node "$NPROC" -m "$@"
  else
    "$python" -m "$@"
  fi
}

launch_many() {  # launch_many [torchrun arguments] -m MODULE [flags]; ends with the status of torchrun
  # A shared store would hand addresses of lost processes to those started in their place (pytorch issue 135712).
  export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
  setsid "$python" -m torch.distributed.run "$@" &
  local torchrun=$! status=0
  # A signal goes to the processes, which save and end with status 0, and not to torchrun, which would end with 1.
  trap 'pkill -TERM -P "$torchrun"' TERM INT HUP
  wait "$torchrun" || status=$?
  while kill -0 "$torchrun" 2>/dev/null; do  # a trap ends the first wait
    status=0
    wait "$torchrun" || status=$?
  done
  trap - TERM INT HUP
  return "$status"
}

launch_nodes() {  # launch_nodes MODULE [torchrun arguments --] [flags]; without --: this machine, NPROC processes
  local module=$1 rendezvous=(--standalone --nproc-per-node "${NPROC:-auto}") place
  shift
  for ((place = 1; place <= $#; place++)); do
    if [ "${!place}" = -- ]; then
      rendezvous=("${@:1:place-1}")
      shift "$place"
      break
    fi
  done
  launch_many "${rendezvous[@]}" -m "$module" "$@"
}
