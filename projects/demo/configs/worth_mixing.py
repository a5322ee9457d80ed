# Shares of a batch, filters, masks and online mixing, compared by worth: docs/en/worth.md has the table.
_base_ = './worth_generators.py'
towards_mask = dict(mask_guidance_scale=1.5)
worth = dict(
    pools=dict(
        soft=dict(sampling=towards_mask, filter=dict(segmentor='unet', mode='soft')),
        turned=dict(
            sampling=towards_mask, masks=dict(type='mmsynth.TransformedMasks', max_angle=45, scale_range=(0.7, 1.4))),
        uncertain=dict(
            sampling=towards_mask,
            masks=dict(type='mmsynth.UncertainMasks', critic='fcn', rule='proportional', share=1.0))),
    rows=dict(
        _delete_=True,
        real=dict(title='real only', iterations=2),
        plain=dict(title='+ unguided', pool='plain', iterations=2),
        soft=dict(title='+ unguided, soft filter', pool='soft', iterations=2),
        turned=dict(title='+ unguided, masks turned and zoomed', pool='turned', iterations=2),
        uncertain=dict(title='+ unguided, uncertain masks', pool='uncertain', iterations=2),
        reducible=dict(title='+ reducible loss 0.3', pool='reducible', iterations=2),
        reducible_quarter=dict(
            title='+ reducible loss 0.3, a quarter of each batch', pool='reducible', iterations=2, ratio=0.25),
        online=dict(
            title='+ reducible loss 0.3 online',
            pool='reducible',
            iterations=2,
            online=dict(begin=100, interval=200, num_per_round=32, max_samples=128, batch_size=32))))
