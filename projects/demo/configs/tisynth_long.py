# A generator that takes the appearance from a reference image, for `--preset long` and studies of worth.
# Train: python tools/train.py projects/demo/configs/tisynth_long.py
# Synthesize: python tools/synthesize.py projects/demo/configs/tisynth_long.py CHECKPOINT --out-dir DIR
_base_ = [
    '_base_/models/tisynth_tiny.py', '_base_/datasets/landcover_synth.py', '_base_/schedules/demo.py',
    '../../../configs/_base_/default_runtime.py'
]
max_iters = 3200
train_cfg = dict(max_iters=max_iters, val_interval=max_iters + 1)
val_cfg = None
test_cfg = None
optim_wrapper = dict(optimizer=dict(lr=1.2e-3, fused=True), clip_grad=dict(max_norm=0.5))  # at 2e-3 one of three seeds collapsed
param_scheduler = [
    dict(type='OneCycleLR', eta_max=1.2e-3, total_steps=max_iters, pct_start=0.1, by_epoch=False),
]
find_unused_parameters = True  # where it runs distributed: the pooled prompt embedding has no use here
default_hooks = dict(checkpoint=dict(interval=max_iters))
custom_hooks = [
    dict(type='mmsynth.FitLatentCodecHook', num_images=256),
    dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.025, interval=5),  # of many small tensors
    dict(type='mmsynth.ProgressBarHook'),
    dict(type='mmsynth.PreviewHook', interval=max_iters),
]
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='mmsynth.LoadSegMap'),
            dict(type='RandomCrop', crop_size={{_base_.crop_size}}),
            dict(type='RandomFlip', prob=0.5),
            dict(type='RandomRotFlip', rotate_prob=0.0, flip_prob=0.5),
            dict(type='mmsynth.BuildPrompt'),
            # A dozen scenes show one look. In the colours of the images to generate like (which need no labels) they
            # show others, and the network learns to ask the reference.
            dict(type='mmsynth.ColorTransfer', folder='work_dirs/demo/data/img_dir/target', prob=0.75),
            # Small networks copy what they are shown: every reference is moved far.
            dict(type='mmsynth.ReferenceAugment', prob=1.0, max_shift=0.5, scale_std=0.3, max_rotation=1.0),
            dict(type='mmsynth.PackSynthInputs'),
        ]))
synthesis = dict(
    dataset=dict(
        pipeline=[
            dict(type='mmsynth.LoadSegMap'),
            dict(type='mmsynth.BuildPrompt'),
            dict(type='mmsynth.PickReference', folder='work_dirs/demo/data/img_dir/target', fit='crop'),
            dict(type='mmsynth.PackSynthInputs'),
        ]),
    guidance=dict(
        type='mmsynth.CRFM',
        critic=dict(
            type='mmsynth.SegmentorCritic',
            config='work_dirs/demo/configs/critic.py',
            checkpoint='work_dirs/demo/critic/iter_800.pth')))
