#!/usr/bin/env bash
# Run the tests beside mmagic 1.2, without a GPU.
#
#   tools/dev/test_mmagic.sh [WHEEL] [-- PYTEST_ARGUMENTS]
#
#   WHEEL             a wheel of mmcv 2.1 with compiled ops, for this Python and torch; without one mmcv is compiled,
#                     which takes half an hour on two cores
#   PYTEST_ARGUMENTS  the tests to run and options of pytest; default: those of mmagic
#
# Environment: ENV_DIR, the folder of the environment, made the first time (default .venv-mmagic); PYTHON, its
# interpreter, which must be 3.11 (default python3).
set -euo pipefail
env=.venv-mmagic
# shellcheck source=tools/dev/host_stack.sh
source "$(dirname "${BASH_SOURCE[0]}")/host_stack.sh"

if [[ ! -e $env/.installed ]]; then
    create_environment
    grep -v '^mmcv' requirements/mmagic.txt > "$env/pins.txt"
    pip --no-deps -r "$env/pins.txt"
    [[ -n $wheel ]] || pip wheel ninja
    install_mmcv "$(grep '^mmcv==' requirements/mmagic.txt)" --no-deps
    touch "$env/.installed"
fi

if [[ $# -eq 0 ]]; then
    set -- tests/test_models/test_mmagic.py tests/test_models/test_mmagic_checkpoints.py
fi
# the plugin stands in for operators of torchvision that need a GPU build of torch
PYTHONPATH=$PWD:$PWD/tests "$env/bin/python" -m pytest -p torchvision_ops -q "$@"
