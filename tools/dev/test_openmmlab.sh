#!/usr/bin/env bash
# Run the tests on the original OpenMMLab stack (mmengine 0.10, mmcv 2.1, mmsegmentation 1.2).
#
#   tools/dev/test_openmmlab.sh [WHEEL] [-- PYTEST_ARGUMENTS]
#
#   WHEEL             a wheel of mmcv with compiled ops, for this Python and torch; without one mmcv is compiled, which
#                     takes half an hour on two cores
#   PYTEST_ARGUMENTS  the tests to run and options of pytest; default: those of what touches the host (10 minutes).
#                     All: -- tests
#
#   tools/dev/test_openmmlab.sh ../shared/wheels/mmcv-2.1.0-cp311-cp311-linux_x86_64.whl -- tests/test_guidance -x
#
# Environment: ENV_DIR, the folder of the environment, made the first time (default .venv-openmmlab); PYTHON, its
# interpreter (default python3; mmcv 2.1 wants 3.10 or 3.11).
set -euo pipefail
env=.venv-openmmlab
# shellcheck source=tools/dev/host_stack.sh
source "$(dirname "${BASH_SOURCE[0]}")/host_stack.sh"

if [[ ! -e $env/.installed ]]; then
    create_environment
    # the pins of both stacks but for the other's OpenMMLab packages, and for setuptools, which must be old
    grep -v -e '^onedl-' -e '^setuptools' requirements/pins.txt > "$env/pins.txt"
    grep -v '^mmcv' requirements/openmmlab.txt >> "$env/pins.txt"
    pip "$(grep '^torch==' "$env/pins.txt")" "$(grep '^setuptools==' "$env/pins.txt")" wheel ninja psutil
    install_mmcv "$(grep '^mmcv==' requirements/openmmlab.txt)"
    pip -r "$env/pins.txt"
    PYTHONPATH=. "$env/bin/python" -c 'import mmsynth'
    touch "$env/.installed"
fi

if [[ $# -eq 0 ]]; then
    set -- tests/test_host.py tests/test_package.py tests/test_utils tests/test_guidance tests/test_filtering \
        tests/test_evaluation tests/test_engine tests/test_datasets tests/test_configs.py tests/test_configs_online.py \
        tests/test_end_to_end.py
fi
PYTHONPATH=$PWD "$env/bin/python" -m pytest -q "$@"
