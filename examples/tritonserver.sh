#!/usr/bin/env bash
# Runs the tritonserver of .venv-triton (make triton): tritonserver.sh --model-repository=DIR ...
# It has the Python backend only. Replaces this shell, so its process id is the server's.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv-triton
[ -e "$venv/.installed" ] || { echo "no tritonserver: run make triton first" >&2; exit 1; }
read -r packages libraries < <("$venv/bin/python" -c \
  'import sysconfig as s; print(s.get_path("purelib"), s.get_config_var("LIBDIR"))')
# The process of a model finds its packages through the python3 of PATH; PYTHONPATH does nothing.
export PATH=$venv/bin:$PATH
export LD_LIBRARY_PATH=$packages/nvidia_pytriton.libs:$libraries
server=$packages/pytriton/tritonserver
exec "$server/bin/tritonserver" --backend-directory="$server/backends" "$@"
