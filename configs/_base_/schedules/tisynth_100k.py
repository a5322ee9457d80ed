# TISynth's released recipe: AdamW 1e-5 at a constant rate, batch 2, float32. It names no length; 100k is ours.
max_iters = 100000
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters + 1)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-5, weight_decay=1e-2))
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=5000, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'))
custom_hooks = [
    dict(type='mmsynth.ResumeCheckHook'),
    dict(type='mmsynth.ProgressBarHook'),
    dict(type='mmsynth.PreviewHook', interval=5000),
]
