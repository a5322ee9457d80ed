# The demo's land-cover set for generators: labelled images to train on, and masks to synthesize for.
data_root = 'work_dirs/demo/data'
crop_size = (48, 48)
train_dataloader = dict(
    batch_size=8,  # many small steps learn more in the same time than few large ones
    num_workers=0,
    sampler=dict(type='mmsynth.SeededInfiniteSampler', shuffle=True),
    dataset=dict(
        type='mmsynth.ManifestDataset',
        data_root=data_root,
        meta_file='meta.json',
        data_prefix=dict(img_path='img_dir/train', seg_map_path='ann_dir/train'),
        img_suffix='.png',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='mmsynth.LoadSegMap'),
            dict(type='RandomCrop', crop_size=crop_size),
            dict(type='RandomFlip', prob=0.5),
            dict(type='RandomRotFlip', rotate_prob=0.0, flip_prob=0.5),
            dict(type='mmsynth.BuildPrompt'),
            dict(type='mmsynth.PackSynthInputs'),
        ]))
synthesis = dict(
    batch_size=32,
    num_per_mask=1,
    dataset=dict(
        type='mmsynth.ManifestDataset',
        data_root=data_root,
        meta_file='meta.json',
        ann_file='synthesis.jsonl',
        pipeline=[
            dict(type='mmsynth.LoadSegMap'),
            dict(type='mmsynth.BuildPrompt'),
            dict(type='mmsynth.PackSynthInputs'),
        ]))
