# Every card holds the whole model; gradients are averaged. This is what mmengine's Runner does under a launcher anyway, here
# without the second copy of all gradients that DDP keeps by default (of SD3.5 medium with its mask branch, 8 GiB).
model_wrapper_cfg = dict(type='MMDistributedDataParallel', broadcast_buffers=False, gradient_as_bucket_view=True)
