# LoveDA as published, 1024-pixel tiles, label 0 is no data: train on Train/Rural, generate urban images for rural masks.
data_root = 'data/loveDA'
classes = ('background', 'building', 'road', 'water', 'barren', 'forest', 'agricultural')
crop_size = (512, 512)
train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='mmsynth.SeededInfiniteSampler', shuffle=True),
    dataset=dict(
        type='mmsynth.LoveDADataset',
        data_root=data_root,
        data_prefix=dict(img_path='Train/Rural/images_png', seg_map_path='Train/Rural/masks_png'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='mmsynth.LoadSegMap', num_classes=7),
            # before the random crop: the cache holds one prompt per image
            dict(type='mmsynth.BuildPrompt', classes=classes),
            dict(type='RandomCrop', crop_size=crop_size),
            dict(type='RandomFlip', prob=0.5),
            dict(type='mmsynth.ReferenceAugment'),
            dict(type='mmsynth.PackSynthInputs'),
        ]))
synthesis = dict(
    batch_size=4,
    num_per_mask=1,
    dataset=dict(
        type='mmsynth.LoveDADataset',
        data_root=data_root,
        data_prefix=dict(img_path='Train/Rural/images_png', seg_map_path='Train/Rural/masks_png'),
        pipeline=[
            dict(type='mmsynth.LoadSegMap', num_classes=7),
            dict(type='mmsynth.CropSegMap', crop_size=crop_size),
            dict(type='mmsynth.BuildPrompt', classes=classes),
            # no labels are needed there; cut to size, so that the ground resolution stays that of training
            dict(type='mmsynth.PickReference', folder=data_root + '/Train/Urban/images_png', fit='crop'),
            dict(type='mmsynth.PackSynthInputs'),
        ]))
