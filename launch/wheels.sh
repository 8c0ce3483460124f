# Sourced by launchers: goes to the root of the repository. With WHEELS=DIR it also installs the Python packages of a
# folder of wheels into SITE (default runs/site), for a machine without a network.
# shellcheck shell=bash
wheels=${WHEELS:+$(realpath "$WHEELS")}
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
if [[ -n "$wheels" ]]; then
  site=${SITE:-$PWD/runs/site}
  python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$site" --upgrade "$wheels"/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
