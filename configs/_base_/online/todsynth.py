# Rounds of TODSynth during a training of 40k iterations, guided by CRFM as it is published; the segmentor in training
# guides and filters. Configs add `generator` and `pool`.
online = dict(
    type='mmsynth.OnlineSynthesisHook',
    begin=2000,  # the segmentor should know something by then
    interval=2000,
    num_per_round=64,
    max_samples=1024,
    critic='runner',
    guidance=dict(type='mmsynth.CRFM'),
    filter=dict(num_images=32))
