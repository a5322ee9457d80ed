# PSPNet on MBRSC Dubai, with one synthetic image in four: TODSynth generates them while it trains.
_base_ = ['./pspnet_r50_dubai_512.py', '../_base_/online/todsynth_dubai.py']
pool = 'work_dirs/pspnet_r50_dubai_online_todsynth/pool'
train_dataloader = dict(
    batch_sampler=dict(type='mmsynth.RatioBatchSampler', ratio=0.25, ramp=10000),
    dataset=dict(
        _delete_=True,
        type='mmsynth.SyntheticAugmentDataset',
        dataset=_base_.train_dataloader.dataset,
        pool=pool))
custom_hooks = [dict(_base_.online, pool=pool)]
