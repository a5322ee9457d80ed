# Sourced by the scripts that run tests on another host stack, with $env set to the default folder of the environment: takes
# [WHEEL] [-- PYTEST_ARGUMENTS] and leaves "$@" with the latter; goes to the repository's root; defines what installs.
wheel=
if [[ $# -gt 0 && $1 != -- ]]; then
    wheel=$(realpath "$1")
    shift
fi
if [[ ${1:-} == -- ]]; then shift; fi
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
env=${ENV_DIR:-$env}

create_environment() {
    "${PYTHON:-python3}" -m venv "$env"
    echo "installing into $env (first time only)"
}

pip() { "$env/bin/python" -m pip --disable-pip-version-check --quiet install "$@"; }

install_mmcv() {  # VERSION OPTIONS_OF_PIP...: the wheel, or compiled with ops, for which wheel and ninja are there
    if [[ -n $wheel ]]; then
        pip "${@:2}" "$wheel"
    else
        echo 'compiling mmcv: half an hour on two cores'
        MMCV_WITH_OPS=1 pip "${@:2}" --no-build-isolation "$1"
    fi
}
