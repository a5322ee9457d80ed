# What guidance asks of an image, compared by worth: docs/en/worth.md has the table that came out.
_base_ = './worth.py'
towards_mask = dict(mask_guidance_scale=1.5)
worth = dict(
    shares=(1.0, ),
    generators=dict(
        _delete_=True, null=dict(config='projects/demo/configs/todsynth_long.py', overrides={'model.mask_dropout': 0.15})),
    critics=dict(
        _delete_=True,
        fcn='projects/demo/configs/critic.py',
        unet='projects/demo/configs/segmentor_unet.py',
        reducible=dict(type='mmsynth.ReducibleLossCritic', critics=('unet', 'fcn'))),  # teacher, learner
    segmentors=dict(_delete_=True, fcn='projects/demo/configs/critic.py'),
    pools=dict(
        _delete_=True,
        plain=dict(sampling=towards_mask),
        uncertain=dict(sampling=towards_mask, guidance=dict(type='mmsynth.CRFM', objective='uncertainty')),
        target=dict(
            sampling=towards_mask,
            guidance=dict(type='mmsynth.CRFM', objective=dict(name='target', targets='critic'))),
        reducible=dict(
            sampling=towards_mask, critic='reducible', guidance=dict(type='mmsynth.CRFM', objective='mask')),
        reducible_strong=dict(
            sampling=towards_mask,
            critic='reducible',
            guidance=dict(type='mmsynth.CRFM', objective='mask', step_size=0.3)),
        misread=dict(sampling=towards_mask, guidance=dict(type='mmsynth.CRFM', step_size=0.3, adaptive=True))),
    rows=dict(
        _delete_=True,
        real=dict(title='real only'),
        strong=dict(title='real only, strong augmentation', transforms={{_base_.strong}}),
        twice=dict(title='real only, twice the iterations', iterations=2),
        plain=dict(title='+ unguided', pool='plain'),
        plain_strong=dict(title='+ unguided, strong augmentation', pool='plain', transforms={{_base_.strong}}),
        uncertain=dict(title='+ towards uncertainty 0.1', pool='uncertain'),
        target=dict(title='+ as hard as real 0.1', pool='target'),
        reducible=dict(title='+ reducible loss 0.1', pool='reducible'),
        reducible_strong=dict(title='+ reducible loss 0.3', pool='reducible_strong'),
        misread=dict(title='+ misread, adaptive 0.3', pool='misread')))
