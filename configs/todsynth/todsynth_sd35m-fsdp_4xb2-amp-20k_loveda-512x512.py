# TODSynth sharded over the cards by FSDP: 15 GiB per card, by the count of docs/en/scaling.md, in the place of 39.
#   torchrun --nproc_per_node 4 tools/train.py THIS_CONFIG --launcher pytorch
_base_ = ['./todsynth_sd35m_4xb2-amp-20k_loveda-512x512.py', '../_base_/strategies/fsdp.py']
strategy = dict(model_wrapper=dict(mixed_precision=dict(param_dtype='bfloat16', reduce_dtype='float32')))
