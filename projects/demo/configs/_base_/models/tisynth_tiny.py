# TISynth sized for two CPU cores: 48-pixel images, 4-pixel latent cells, a U-Net from scratch, no weights to download.
classes = ('background', 'building', 'road', 'water', 'field', 'forest')
width = 64
model = dict(
    type='mmsynth.TISynth',
    data_preprocessor=dict(type='mmsynth.SynthDataPreprocessor'),
    latent_codec=dict(type='mmsynth.PatchPCACodec', patch_size=4, channels=16, whitening=0.5),
    label_codec=dict(type='mmsynth.OneHotCodec', num_classes=len(classes)),
    text_encoder=dict(type='mmsynth.ClassNameEmbedding', classes=classes, embed_dims=width, pooled_dims=width),
    network=dict(
        type='mmsynth.ControlledUNet',
        mask_channels=len(classes),
        mask_factor=4,
        mask_locality=True,
        unet=dict(
            sample_size=12,
            in_channels=16,
            out_channels=16,
            layers_per_block=1,
            block_out_channels=(64, 128),
            down_block_types=('CrossAttnDownBlock2D', 'CrossAttnDownBlock2D'),
            up_block_types=('CrossAttnUpBlock2D', 'CrossAttnUpBlock2D'),
            cross_attention_dim=width,
            attention_head_dim=4,  # the number of heads, as in Stable Diffusion 1.5
            norm_num_groups=16)),
    prediction_type='v_prediction',  # easier from scratch; Stable Diffusion 1.5 predicts the noise
    timestep_density=dict(logit_mean=-0.5, logit_std=1.0),
    sampler=dict(type='DPMSolverMultistepScheduler'),
    trainable=dict(unet='full', attention='full', mask='full', reference='full'),
    num_steps=20,
    guidance_scale=1.0)
