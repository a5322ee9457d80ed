#!/usr/bin/env bash
# Generate one pool by an array job of Slurm:  tools/slurm_synthesize.sh PARTITION JOB_NAME CONFIG CHECKPOINT --out-dir DIR [options of tools/synthesize.py]
#   Each task takes a GPU and its shard; the last to finish completes the pool. A task that was killed is submitted again alone
#   by SBATCH_ARGS='--array=3' SHARDS=8.  Environment: SHARDS (4), CPUS_PER_TASK (5), SBATCH_ARGS (more options of sbatch); PYTHON.
set -euo pipefail
if [[ $# -lt 4 ]]; then sed -n '2,4s/^# *//p' "$0" >&2; exit 2; fi
read -ra sbatch_args <<< "${SBATCH_ARGS:-}"
shards=${SHARDS:-4}

printf -v line '%q ' "${PYTHON:-python}" -u "$(realpath "$(dirname "$0")")/synthesize.py" "$3" "$4" "${@:5}"
set -x
sbatch -p "$1" \
    --job-name="$2" \
    --gres=gpu:1 \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --array="0-$((shards - 1))" \
    "${sbatch_args[@]}" \
    --wrap "$line--shard \$SLURM_ARRAY_TASK_ID/$shards"
