# Real and synthetic images, half and half, as in segmentor_mixed.py; but generated while the segmentor trains, guided by
# what it has learnt by then.
_base_ = './critic.py'
pool = 'work_dirs/demo/pool_online'
train_dataloader = dict(
    batch_sampler=dict(type='mmsynth.RatioBatchSampler', ratio=0.5),
    dataset=dict(
        _delete_=True,
        type='mmsynth.SyntheticAugmentDataset',
        dataset=_base_.train_dataset,
        pool=pool))
custom_hooks = [
    dict(
        type='mmsynth.OnlineSynthesisHook',
        pool=pool,
        begin=100,  # the segmentor should know something by then
        interval=100,
        num_per_round=32,
        max_samples=128,
        batch_size=32,
        critic='runner',
        guidance=dict(type='mmsynth.CRFM'),
        generator=dict(config='projects/demo/configs/todsynth.py', checkpoint='work_dirs/demo/todsynth/iter_600.pth'))
]
