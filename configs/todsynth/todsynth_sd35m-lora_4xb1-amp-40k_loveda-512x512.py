# As todsynth_sd35m_4xb1-amp-40k_loveda-512x512.py, but low-rank updates of the attention projections are all that is trained: less
# memory, and checkpoints of megabytes. Merged into the weights, for use without LoRA:
#   python tools/convert_checkpoint.py THIS_CONFIG CHECKPOINT --out generator.safetensors --merge-lora
_base_ = ['./todsynth_sd35m_4xb1-amp-40k_loveda-512x512.py']
model = dict(trainable=dict(image='lora', mask='lora', text='frozen'), lora=dict(rank=16, alpha=16))
