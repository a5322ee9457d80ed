#!/usr/bin/env bash
# Run a quick subset of the tests against other versions, each in an environment of its own.
#
#   tools/dev/test_matrix.sh [ROW...]          default: all rows
#
#   diffusers-oldest    the oldest diffusers that setup.py allows, otherwise the pins
#   diffusers-newest    the newest that pip finds
#   python-3.10 … 3.13  the pins on that Python, if the machine has it
#   openmmlab           the original stack, by tools/dev/test_openmmlab.sh (mmcv compiles: half an hour; WHEEL=FILE spares it)
#
# Environment: ENVS, the folder of the environments (default .venv-matrix); PYTHON, for the rows of diffusers (default
# python3); BASE, an environment of the same Python and with the pins, such as .venv: the rows of diffusers then install what
# differs and take the rest from there; PYTEST_ARGS.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
envs=${ENVS:-.venv-matrix}
oldest=$(sed -n "s/^ *'diffusers>=\(.*\)',$/\1/p" setup.py)
# what touches diffusers: networks of both generators, schedulers, text encoders, controlnets, and one whole run
subset=(tests/parity tests/test_sampling tests/test_models/test_mmdit.py tests/test_models/test_control_triple.py
    tests/test_models/test_controlled_unet.py tests/test_models/test_text_encoders.py tests/test_models/test_diffusers_controlnet.py
    tests/test_models/test_autoencoder_codec.py tests/test_tools/test_tools.py::test_synthesize_takes_its_options)
results=()

install() {  # ENVIRONMENT PYTHON FILE_OF_PINS BASE: made once per FILE_OF_PINS, which is what it holds beyond BASE
    cmp -s "$3" "$1/.installed" && return
    "$2" -m venv --clear "$1" || return
    [[ -z $4 ]] || ls -d "$(realpath "$4")"/lib/python3*/site-packages > "$(echo "$1"/lib/python3*/site-packages)/base.pth"
    "$1/bin/python" -m pip --disable-pip-version-check --quiet install --upgrade -r "$3" && cp "$3" "$1/.installed"
}

find_python() {  # VERSION: the interpreter, on PATH or pyenv's; a shim of pyenv may be there and not run
    local python
    for python in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
        if "$python" -c '' 2> /dev/null; then
            echo "$python"
            return
        fi
    done
    return 1
}

run() {  # ROW PYTHON FILE_OF_PINS BASE
    echo "== $1"
    if ! install "$envs/$1" "$2" "$3" "$4"; then
        results+=("$1: not tested (the installation failed)")
        return
    fi
    local python=$envs/$1/bin/python found
    found=$("$python" -c 'import sys, diffusers, torch, transformers; print(
        f"Python {sys.version.split()[0]}, diffusers {diffusers.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")')
    # shellcheck disable=SC2086
    if PYTHONPATH=$PWD OMP_NUM_THREADS=1 "$python" -m pytest -n 0 -q -W ignore "${subset[@]}" ${PYTEST_ARGS:-} |& tee "$envs/$1.log"; then
        results+=("$1: passed ($found)")
    else
        results+=("$1: FAILED ($found), see $envs/$1.log")
    fi
}

mkdir -p "$envs"
if [[ $# -eq 0 ]]; then set -- diffusers-oldest diffusers-newest python-3.10 python-3.11 python-3.12 python-3.13 openmmlab; fi
for row in "$@"; do
    pins=$envs/$row.txt
    case $row in
    diffusers-*)
        wanted=(diffusers transformers)
        if [[ $row == diffusers-oldest ]]; then wanted=("diffusers==$oldest.*" 'transformers<5'); fi  # it imports names that 5 lacks
        { [[ -n ${BASE:-} ]] || grep -v -e '^diffusers==' -e '^transformers==' requirements/pins.txt
            printf '%s\n' "${wanted[@]}"; } > "$pins"
        run "$row" "${PYTHON:-python3}" "$pins" "${BASE:-}" ;;
    python-*)
        if python=$(find_python "${row#python-}"); then
            cp requirements/pins.txt "$pins"
            run "$row" "$python" "$pins" ''
        else
            results+=("$row: not tested (the machine has no ${row/-/ })")
        fi ;;
    openmmlab)
        # shellcheck disable=SC2086
        if tools/dev/test_openmmlab.sh ${WHEEL:-} -- -n 0 "${subset[@]}" ${PYTEST_ARGS:-}; then
            results+=("$row: passed")
        else
            results+=("$row: FAILED")
        fi ;;
    *)
        echo "$row is no row: see the head of $0" >&2
        exit 2 ;;
    esac
done
printf '\n'
printf '%s\n' "${results[@]}"
! printf '%s\n' "${results[@]}" | grep -q FAILED
