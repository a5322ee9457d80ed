# TODSynth sized for two CPU cores: 48-pixel images, 4-pixel tokens, no weights to download.
patch_size = 4
classes = ('background', 'building', 'road', 'water', 'field', 'forest')
width = 128
model = dict(
    type='mmsynth.TODSynth',
    data_preprocessor=dict(type='mmsynth.SynthDataPreprocessor'),
    # or dict(type='mmsynth.AutoencoderCodec', factor=4, channels=16): no seams (projects/demo --codec autoencoder)
    latent_codec=dict(type='mmsynth.PatchPCACodec', patch_size=patch_size, channels=16, whitening=0.5),
    label_codec=dict(type='mmsynth.OneHotCodec', num_classes=len(classes), patch_size=patch_size),  # every pixel counts
    text_encoder=dict(type='mmsynth.ClassNameEmbedding', classes=classes, embed_dims=width, pooled_dims=width),
    network=dict(
        type='mmsynth.MMDiT',
        control='triple',  # how masks steer the image; or 'siamese', 'adapter' (projects/demo --control)
        mask_channels=len(classes) * patch_size**2,
        trunk=dict(
            sample_size=12,
            patch_size=1,
            in_channels=16,
            out_channels=16,
            num_layers=4,
            attention_head_dim=32,
            num_attention_heads=4,
            joint_attention_dim=width,
            caption_projection_dim=width,
            pooled_projection_dim=width,
            pos_embed_max_size=32,
            qk_norm='rms_norm')),
    scheduler=dict(shift=1.0),
    trainable=dict(image='full', mask='full', text='full'),
    weighting_scheme='logit_normal',
    num_steps=23)
