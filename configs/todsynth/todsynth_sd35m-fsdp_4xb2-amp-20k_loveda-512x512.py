# TODSynth sharded over the cards by FSDP: for cards on which its 53 GiB of float32 weights, gradients and Adam moments do not fit.
#   torchrun --nproc_per_node 4 tools/train.py THIS_CONFIG --launcher pytorch
_base_ = ['./todsynth_sd35m_4xb2-amp-20k_loveda-512x512.py', '../_base_/strategies/fsdp.py']
