# DeepLabV3+ on LoveDA, with one synthetic image in four: TISynth generates them while it trains.
_base_ = ['./deeplabv3plus_r50_1xb8-40k_loveda-512x512.py', '../_base_/online/tisynth.py']
pool = 'work_dirs/deeplabv3plus_r50_1xb8-40k_loveda-512x512_online-tisynth/pool'
train_dataloader = dict(
    batch_sampler=dict(type='mmsynth.RatioBatchSampler', ratio=0.25, ramp=10000),
    dataset=dict(
        _delete_=True,
        type='mmsynth.SyntheticAugmentDataset',
        dataset=_base_.train_dataloader.dataset,
        pool=pool))
custom_hooks = [
    dict(
        _base_.online,
        pool=pool,
        generator=dict(
            config='configs/tisynth/tisynth_sd15_1xb2-100k_loveda-rural2urban-512x512.py',
            checkpoint='work_dirs/tisynth_sd15_1xb2-100k_loveda-rural2urban-512x512/iter_100000.pth'))
]
