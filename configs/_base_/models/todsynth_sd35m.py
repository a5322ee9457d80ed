# TODSynth on Stable Diffusion 3.5 medium (arXiv 2512.16740).
# `pretrained` is a hub id or a folder in the diffusers layout.
# Text embeddings are read from a cache: run `python tools/encode_prompts.py CONFIG` once before training.
pretrained = 'stabilityai/stable-diffusion-3.5-medium'
prompt_encoder = dict(type='mmsynth.SD3TextEncoder', pretrained=pretrained, max_sequence_length=256)
model = dict(
    type='mmsynth.TODSynth',
    data_preprocessor=dict(type='mmsynth.SynthDataPreprocessor'),
    network=dict(type='mmsynth.MMDiT', pretrained=pretrained, gradient_checkpointing=True),
    latent_codec=dict(type='mmsynth.VAECodec', pretrained=pretrained),  # cache_dir=...: docs/en/latents.md
    label_codec=dict(type='mmsynth.GreyLevelCodec', num_classes=7),
    text_encoder=dict(type='mmsynth.CachedTextEncoder', cache_dir='data/prompt_cache/sd35m'),
    scheduler=dict(shift=3.0),
    trainable=dict(image='full', mask='full', text='frozen'),
    weighting_scheme='none',
    num_steps=23)  # fewer with sampler=dict(type='DPMSolverMultistepScheduler'): docs/en/samplers.md
