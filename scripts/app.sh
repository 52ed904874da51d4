#!/usr/bin/env bash
# A page to play with, at http://127.0.0.1:7860:  bash scripts/app.sh [flags]
# Gradio is installed on first use into $ENDOGEN_APP_VENV, else .venv-app, which sees the packages of the project's.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
app=$(realpath -m -- "${ENDOGEN_APP_VENV:-$root/.venv-app}")
wanted=$(cat "$root/scripts/requirements-app.txt" && echo "$python")
stamp=$app/endogen-app.txt  # in every folder made here, with what was wanted once it is complete
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  mkdir -p "$app"
  [ -e "$stamp" ] || [ -z "$(ls -A "$app")" ] ||
    { echo "error: ENDOGEN_APP_VENV $app: holds something else, and would be emptied" >&2; exit 2; }
  echo "setting up Gradio in $app (once, a minute)" >&2
  : >"$stamp" && find "$app" -mindepth 1 ! -path "$stamp" -delete && "$python" -m venv "$app" &&
    site=$("$app/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') &&
    "$python" -c 'import site; print(*site.getsitepackages(), sep="\n")' >"$site/project.pth" &&
    "$app/bin/python" -m pip install --quiet --disable-pip-version-check \
      --requirement "$root/scripts/requirements-app.txt" >&2 || { echo "error: could not set up $app" >&2; exit 2; }
  echo "$wanted" >"$stamp"
fi
python=$app/bin/python
launch autoregressive.sample.app "$@"
