# The demo's generator that takes the appearance from a reference image: half as wide as tisynth_long.py, without attention
# in the encoders, with narrower hint encoders, on smaller crops, so that a step takes a quarter of the time; at twice the rate.
# Train: python tools/train.py projects/demo/configs/tisynth.py
# Synthesize: python tools/synthesize.py projects/demo/configs/tisynth.py CHECKPOINT --out-dir DIR
_base_ = './tisynth_long.py'
max_iters = 1300
lr = 2.5e-3
model = dict(
    num_steps=12,  # a judge reads its images as well as those of 20 steps
    network=dict(
        conditioning_embedding_out_channels=(16, 32, 64, 64),
        unet=dict(block_out_channels=(32, 64), down_block_types=('DownBlock2D', 'DownBlock2D'))))
train_cfg = dict(max_iters=max_iters, val_interval=max_iters + 1)
optim_wrapper = dict(optimizer=dict(lr=lr))
param_scheduler = [
    dict(type='OneCycleLR', eta_max=lr, total_steps=max_iters, pct_start=0.1, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(interval=max_iters))
custom_hooks = _base_.custom_hooks
custom_hooks[-1].interval = max_iters  # of PreviewHook
train_pipeline = _base_.train_dataloader.dataset.pipeline
train_pipeline[2].crop_size = (32, 32)  # of RandomCrop
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
