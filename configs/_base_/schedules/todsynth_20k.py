# TODSynth's released recipe: 20k optimizer steps, each over two batches, hence 40k iterations; bf16; on 4 GPUs.
# (The paper's text: lr 1e-5, 200k steps, 8 GPUs.)
max_iters = 40000
warmup = 1000
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters + 1)
optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='bfloat16',
    loss_scale=1.0,  # bf16 has the range of float32
    accumulative_counts=2,
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-2),
    clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=warmup, by_epoch=False),
    dict(type='CosineAnnealingLR', T_max=max_iters - warmup, eta_min=0.0, begin=warmup, end=max_iters, by_epoch=False),
]
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # With the optimizer's state, without which a training cannot be resumed: three times the trained weights on disk.
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2000, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'))
custom_hooks = [
    dict(type='mmsynth.ResumeCheckHook'),
    dict(type='mmsynth.ProgressBarHook'),
    dict(type='mmsynth.PreviewHook', interval=2000),
]
