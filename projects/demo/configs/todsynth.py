# The demo's generator and what it synthesizes. Train: python tools/train.py projects/demo/configs/todsynth.py
# Synthesize: python tools/synthesize.py projects/demo/configs/todsynth.py CHECKPOINT --out-dir DIR
_base_ = [
    '_base_/models/todsynth_tiny.py', '_base_/datasets/landcover_synth.py', '_base_/schedules/demo.py',
    '../../../configs/_base_/default_runtime.py'
]
max_iters = 600
train_cfg = dict(max_iters=max_iters, val_interval=max_iters + 1)
val_cfg = None
test_cfg = None
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type='OneCycleLR', eta_max=2e-3, total_steps=max_iters, pct_start=0.1, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(interval=max_iters))
custom_hooks = [
    dict(type='mmsynth.FitLatentCodecHook', num_images=256),
    dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.005),
    dict(type='mmsynth.ProgressBarHook'),
    dict(type='mmsynth.PreviewHook', interval=max_iters),
]
synthesis = dict(
    guidance=dict(
        type='mmsynth.CRFM',
        critic=dict(
            type='mmsynth.SegmentorCritic',
            config='work_dirs/demo/configs/critic.py',
            checkpoint='work_dirs/demo/critic/iter_800.pth')))
