"""Training samples for hooks, drawn beside the training without touching its random state."""
from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from mmsynth.utils import isolated_random_state


def unwrap(model: nn.Module) -> Any:
    """The model inside a distributed wrapper; of which class, the config says."""
    return model.module if is_model_wrapper(model) else model


def draw_training_batch(runner: Runner, count: int, seed: int) -> dict[str, Any]:
    """Samples spread evenly over the training set, through its pipeline and the model's data preprocessor.

    Args:
        runner: The run.
        count: Samples to draw; a smaller data set is gone through repeatedly, its random transforms drawn anew.
        seed: Of the random transforms.

    Returns:
        ``inputs`` (count, 3, H, W), float, [-1, 1], RGB, and ``data_samples``.
    """
    dataset = runner.train_dataloader.dataset
    with isolated_random_state(seed):
        items = [dataset[index * len(dataset) // count % len(dataset)] for index in range(count)]
    batch = dict(inputs=[item['inputs'] for item in items], data_samples=[item['data_samples'] for item in items])
    return unwrap(runner.model).data_preprocessor(batch)
