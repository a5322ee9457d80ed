# TISynth on Stable Diffusion 1.5 (Information Fusion, 10.1016/j.inffus.2025.103839).
# `pretrained` is a hub id or a folder in the diffusers layout.
# Text embeddings are read from a cache: run `python tools/encode_prompts.py CONFIG` once before training.
# Masks enter as class id / 255, as in the release, whose checkpoints then fit. Unlike the release, the mask branch is
# trained, as the paper has it; `legacy=True` leaves it frozen. For training anew, OneHotCodec with the network's
# `mask_channels` set to the class count keeps classes further apart.
pretrained = 'stable-diffusion-v1-5/stable-diffusion-v1-5'
prompt_encoder = dict(type='mmsynth.CLIPTextEncoder', pretrained=pretrained)
model = dict(
    type='mmsynth.TISynth',
    data_preprocessor=dict(type='mmsynth.SynthDataPreprocessor'),
    network=dict(type='mmsynth.ControlledUNet', pretrained=pretrained, gradient_checkpointing=True),
    latent_codec=dict(type='mmsynth.VAECodec', pretrained=pretrained),
    label_codec=dict(type='mmsynth.IdCodec', num_classes=24),
    text_encoder=dict(type='mmsynth.CachedTextEncoder', cache_dir='data/prompt_cache/sd15'),
    sampler=dict(type='DDIMScheduler'),  # or DPMSolverMultistepScheduler with fewer steps: docs/en/samplers.md
    trainable=dict(unet='frozen', attention='full', mask='full', reference='full'),
    num_steps=50,
    guidance_scale=9.0)
