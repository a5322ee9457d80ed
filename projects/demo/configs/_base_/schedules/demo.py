# Sized for two CPU cores; the smoke preset shortens `max_iters`. The rate is a segmentor's: at a quarter of it some do not
# learn water (docs/en/worth.md); generators set their own.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=800, val_interval=800)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=8e-3, weight_decay=1e-2), clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type='OneCycleLR', eta_max=8e-3, total_steps=800, pct_start=0.1, by_epoch=False),
]
default_hooks = dict(
    threads=dict(type='mmsynth.NumThreadsHook', num_threads=1),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=800, max_keep_ckpts=1),
    sampler_seed=dict(type='DistSamplerSeedHook'))
