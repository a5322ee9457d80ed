#!/usr/bin/env bash
# Generate one pool on several GPUs:  tools/dist_synthesize.sh CONFIG CHECKPOINT GPUS --out-dir DIR [options of tools/synthesize.py]
#   GPUS is the number per node. Environment: NNODES, NODE_RANK, MASTER_ADDR and PORT, as in mmseg; PYTHON.
set -euo pipefail
if [[ $# -lt 3 ]]; then sed -n '2,3s/^# *//p' "$0" >&2; exit 2; fi

"${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --nproc_per_node="$3" \
    --master_port="${PORT:-29500}" \
    "$(dirname "$0")/synthesize.py" "$1" "$2" "${@:4}"
