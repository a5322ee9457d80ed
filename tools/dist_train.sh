#!/usr/bin/env bash
# Train on the GPUs of one node, or of several:  tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
#   GPUS is the number per node. Environment: NNODES, NODE_RANK, MASTER_ADDR and PORT, as in mmseg; PYTHON.
set -euo pipefail
if [[ $# -lt 2 ]]; then sed -n '2,3s/^# *//p' "$0" >&2; exit 2; fi

"${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --nproc_per_node="$2" \
    --master_port="${PORT:-29500}" \
    "$(dirname "$0")/train.py" "$1" --launcher pytorch "${@:3}"
