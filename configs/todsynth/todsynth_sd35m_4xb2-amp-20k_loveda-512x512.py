# As todsynth_sd35m_4xb1-amp-40k_loveda-512x512.py, but the two batches of a step at once: for the strategies that shard gradients,
# which an accumulation over iterations would keep whole on every card.
_base_ = ['./todsynth_sd35m_4xb1-amp-40k_loveda-512x512.py']
max_iters = 20000
warmup = 500
train_dataloader = dict(batch_size=2)
train_cfg = dict(max_iters=max_iters, val_interval=max_iters + 1)
optim_wrapper = dict(accumulative_counts=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=warmup, by_epoch=False),
    dict(type='CosineAnnealingLR', T_max=max_iters - warmup, eta_min=0.0, begin=warmup, end=max_iters, by_epoch=False),
]
