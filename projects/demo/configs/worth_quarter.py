# A quarter of the images labelled, the rest known by their pixels alone, compared by worth: docs/en/worth.md has the table.
_base_ = './worth_generators.py'
worth = dict(
    shares=(0.25, ),
    generators=dict(
        _delete_=True,
        unlabelled=dict(config='projects/demo/configs/todsynth_long.py', unlabelled=0.5),
        labelled=dict(
            config='projects/demo/configs/todsynth_long.py', overrides={'model.mask_dropout': 0.15})),
    pools=dict(
        _delete_=True,
        plain=dict(sampling=dict(mask_guidance_scale=1.5)),
        reducible=dict(
            sampling=dict(mask_guidance_scale=1.5),
            critic='reducible',
            guidance=dict(type='mmsynth.CRFM', objective='mask', step_size=0.3)),
        labelled=dict(generator='labelled', sampling=dict(mask_guidance_scale=1.5)),
        labelled_crfm=dict(
            generator='labelled', sampling=dict(mask_guidance_scale=1.5), guidance=dict(type='mmsynth.CRFM')),
        labelled_reducible=dict(
            generator='labelled',
            sampling=dict(mask_guidance_scale=1.5),
            critic='reducible',
            guidance=dict(type='mmsynth.CRFM', objective='mask', step_size=0.3))),
    rows=dict(
        _delete_=True,
        real=dict(title='real only', iterations=2),
        twice=dict(title='real only, twice the iterations', iterations=4),
        slow=dict(title='real only, a quarter of the rate', iterations=2, learning_rate=0.25),
        strong=dict(title='real only, strong augmentation', iterations=2, transforms={{_base_.strong}}),
        self_training=dict(title='self-training', self_training=True, iterations=2),
        plain=dict(title='+ unguided', pool='plain', iterations=2),
        reducible=dict(title='+ reducible loss 0.3', pool='reducible', iterations=2),
        labelled=dict(title='+ unguided, generator of the labelled images alone', pool='labelled', iterations=2),
        labelled_crfm=dict(
            title='+ CRFM 0.1, generator of the labelled images alone', pool='labelled_crfm', iterations=2),
        labelled_reducible=dict(
            title='+ reducible loss 0.3, generator of the labelled images alone', pool='labelled_reducible', iterations=2)))
