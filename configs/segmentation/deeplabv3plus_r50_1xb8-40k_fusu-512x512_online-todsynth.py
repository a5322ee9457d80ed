# DeepLabV3+ on FUSU, with one synthetic image in four: TODSynth generates them while it trains.
_base_ = ['./deeplabv3plus_r50_1xb8-40k_fusu-512x512.py', '../_base_/online/todsynth.py']
pool = 'work_dirs/deeplabv3plus_r50_1xb8-40k_fusu-512x512_online-todsynth/pool'
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
            config='configs/todsynth/todsynth_sd35m_4xb1-amp-40k_fusu-512x512.py',
            checkpoint='work_dirs/todsynth_sd35m_4xb1-amp-40k_fusu-512x512/iter_40000.pth'))
]
