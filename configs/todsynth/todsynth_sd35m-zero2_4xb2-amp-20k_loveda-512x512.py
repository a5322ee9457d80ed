# TODSynth by DeepSpeed's ZeRO stage 2.
#   torchrun --nproc_per_node 4 tools/train.py THIS_CONFIG --launcher pytorch
_base_ = ['./todsynth_sd35m_4xb2-amp-20k_loveda-512x512.py', '../_base_/strategies/deepspeed_zero2.py']
optim_wrapper = dict(
    _delete_=True,
    type='DeepSpeedOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-2))
