# The table's other rows: real and synthetic images, half and half. A plain mmseg data set reads the pool.
_base_ = './critic.py'
pool_root = 'work_dirs/demo/pool_crfm'
real_repeats, synthetic_repeats = 4, 1  # make both about equally many
train_dataset = _base_.train_dataset
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[
            dict(type='RepeatDataset', times=real_repeats, dataset=train_dataset),
            dict(
                type='RepeatDataset',
                times=synthetic_repeats,
                dataset=dict(
                    type='BaseSegDataset',
                    data_root=pool_root,
                    metainfo=_base_.metainfo,
                    data_prefix=dict(img_path='img_dir', seg_map_path='ann_dir'),
                    img_suffix='.png',
                    pipeline=_base_.train_pipeline)),
        ]))
