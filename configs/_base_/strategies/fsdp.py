# Every card holds a share of weights, gradients and optimizer states, and gathers the weights of a block while it runs.
# Checkpoints are those of any other training, and a run resumes on another number of cards.
# Not with `accumulative_counts`: between two steps of the optimizer every card would keep the whole gradient. Raise the batch.
runner_type = 'FlexibleRunner'
strategy = dict(type='mmsynth.FSDPStrategy', model_wrapper=dict(sharding_strategy='FULL_SHARD'))
