# Rounds of TISynth during a training of 40k iterations, filtered by losses per class as it is published; the segmentor
# in training filters. `guidance=dict(type='mmsynth.CRFM')` lets it guide, too. Configs add `generator` and `pool`.
online = dict(
    type='mmsynth.OnlineSynthesisHook',
    begin=2000,  # the segmentor should know something by then
    interval=2000,
    num_per_round=64,
    max_samples=1024,
    critic='runner',
    filter=dict(num_images=32))
