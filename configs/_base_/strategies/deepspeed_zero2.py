# Every card holds the whole weights, and a share of gradients and optimizer states (ZeRO stage 2).
# Needs `pip install 'mmsynth[deepspeed]'`. bf16 by torch's autocast, as AmpOptimWrapper has it, over float32 weights: DeepSpeed's own `bf16`
# would cast all of the model, what is computed in float32 on purpose included. Gradients are clipped by the strategy, and it
# accumulates. A checkpoint is a folder of shards; `python WORK_DIR/zero_to_fp32.py WORK_DIR OUT --safe_serialization -t iter_N.pth`
# writes what tools/synthesize.py reads (not with LoRA, whose names stay peft's: DDP and FSDP write those).
# Resume with the number of cards of the run. A config that inherits this has the optimizer in
#   optim_wrapper = dict(_delete_=True, type='DeepSpeedOptimWrapper', optimizer=...)
runner_type = 'FlexibleRunner'
strategy = dict(
    type='DeepSpeedStrategy',
    config=dict(torch_autocast=dict(enabled=True, dtype='bfloat16')),
    zero_optimization=dict(stage=2, overlap_comm=True, contiguous_gradients=True),
    gradient_clipping=1.0,
    gradient_accumulation_steps=1)
