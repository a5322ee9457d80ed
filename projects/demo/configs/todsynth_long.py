# The same generator, trained for longer (`--preset long`): the figures of docs/en/worth.md come from it.
_base_ = './todsynth.py'
max_iters = 3200
train_cfg = dict(max_iters=max_iters, val_interval=max_iters + 1)
param_scheduler = [
    dict(type='OneCycleLR', eta_max=2e-3, total_steps=max_iters, pct_start=0.1, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(interval=max_iters))
