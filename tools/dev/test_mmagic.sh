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
wheel=
if [[ $# -gt 0 && $1 != -- ]]; then
    wheel=$(realpath "$1")
    shift
fi
if [[ ${1:-} == -- ]]; then shift; fi
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
env=${ENV_DIR:-.venv-mmagic}

if [[ ! -e $env/.installed ]]; then
    "${PYTHON:-python3}" -m venv "$env"
    pip() { "$env/bin/python" -m pip --disable-pip-version-check --quiet install "$@"; }
    echo "installing into $env (first time only)"
    grep -v '^mmcv' requirements/mmagic.txt > "$env/pins.txt"
    pip --no-deps -r "$env/pins.txt"
    if [[ -n $wheel ]]; then
        pip --no-deps "$wheel"
    else
        echo 'compiling mmcv: half an hour on two cores'
        pip wheel ninja
        MMCV_WITH_OPS=1 pip --no-deps --no-build-isolation "$(grep '^mmcv==' requirements/mmagic.txt)"
    fi
    touch "$env/.installed"
fi

if [[ $# -eq 0 ]]; then
    set -- tests/test_models/test_mmagic.py tests/test_models/test_mmagic_checkpoints.py
fi
# the plugin stands in for operators of torchvision that need a GPU build of torch
PYTHONPATH=$PWD:$PWD/tests "$env/bin/python" -m pytest -p torchvision_ops -q "$@"
