#!/usr/bin/env bash
# Train under Slurm:  tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
#   Environment: GPUS in all (4), GPUS_PER_NODE (4), CPUS_PER_TASK (5), SRUN_ARGS (more options of srun); PYTHON.
set -euo pipefail
if [[ $# -lt 3 ]]; then sed -n '2,3s/^# *//p' "$0" >&2; exit 2; fi
read -ra srun_args <<< "${SRUN_ARGS:-}"

set -x
srun -p "$1" \
    --job-name="$2" \
    --gres=gpu:"${GPUS_PER_NODE:-4}" \
    --ntasks="${GPUS:-4}" \
    --ntasks-per-node="${GPUS_PER_NODE:-4}" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    "${srun_args[@]}" \
    "${PYTHON:-python}" -u "$(dirname "$0")/train.py" "$3" --launcher slurm "${@:4}"
