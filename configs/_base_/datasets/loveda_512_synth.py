# LoveDA as mmseg's tools/dataset_converters/loveda.py lays it out: 1024-pixel tiles, label 0 is no data.
data_root = 'data/loveDA'
classes = ('background', 'building', 'road', 'water', 'barren', 'forest', 'agricultural')
crop_size = (512, 512)
train_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='mmsynth.SeededInfiniteSampler', shuffle=True),
    dataset=dict(
        type='mmsynth.LoveDADataset',
        data_root=data_root,
        data_prefix=dict(img_path='img_dir/train', seg_map_path='ann_dir/train'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='mmsynth.LoadSegMap', num_classes=7),
            # before the random crop: the cache holds one prompt per image
            dict(type='mmsynth.BuildPrompt', classes=classes),
            dict(type='RandomCrop', crop_size=crop_size),
            dict(type='RandomFlip', prob=0.5),
            dict(type='mmsynth.PackSynthInputs'),
        ]))
synthesis = dict(
    batch_size=4,
    num_per_mask=3,  # the paper's ratio of synthetic to real
    dataset=dict(
        type='mmsynth.LoveDADataset',
        data_root=data_root,
        data_prefix=dict(img_path='img_dir/train', seg_map_path='ann_dir/train'),
        pipeline=[
            dict(type='mmsynth.LoadSegMap', num_classes=7),
            dict(type='mmsynth.CropSegMap', crop_size=crop_size),
            dict(type='mmsynth.BuildPrompt', classes=classes),
            dict(type='mmsynth.PackSynthInputs'),
        ]))
