"""The Inception network of the FID: torch-fidelity's features with seeded weights, the FID as a metric, and mistakes.

Nothing can be downloaded here: a file in the released file's format is written with weights drawn from a seed.
"""
from pathlib import Path

import numpy as np
import pytest
import torch
from colour_judges import generated, measure
from torch import Tensor

from mmsynth.evaluation import FrechetDistance, Gaussian, frechet_distance
from mmsynth.evaluation.inception import Inception, resize_as_tensorflow

pytestmark = pytest.mark.slow

# what FeatureExtractorInceptionV3 of torch-fidelity 0.4.0 gives for image() with weights(): every 256th feature, the
# mean, and the mean square
EXPECTED = [0.7692, 0.01481, 0.03022, 1.14533, 0.17879, 0.18197, 0.49657, 0.66304]
EXPECTED_MEAN, EXPECTED_SQUARE = 0.20734688639640808, 0.12497565150260925


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes in the released file: this network's and the classifier's."""
    with torch.device('meta'), pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmsynth.evaluation.inception.read_checkpoint', lambda path: {})
        patch.setattr('mmsynth.evaluation.inception.load_state_dict', lambda *args, **options: None)
        own = {name: tuple(value.shape) for name, value in Inception('').state_dict().items()
               if not name.endswith('num_batches_tracked')}
    return own | {'fc.weight': (1008, 2048), 'fc.bias': (1008, )}


def weights() -> dict[str, Tensor]:
    """Drawn from a seed in the order of the names, in the size that keeps the signal alive through the layers."""
    generator, state = torch.Generator().manual_seed(0), {}
    for name, shape in sorted(shapes().items()):
        noise = torch.randn(shape, generator=generator)
        if name.endswith('conv.weight'):
            state[name] = noise * (2 / noise[0].numel())**0.5
        elif name.endswith('running_var'):
            state[name] = 0.5 + noise.abs()
        else:
            state[name] = (name.endswith('bn.weight')) + 0.1 * noise
    return state


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('inception') / 'weights.pth'
    torch.save(weights(), path)
    return path


def image(count: int = 1) -> Tensor:
    return torch.randint(0, 256, (count, 3, 40, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_the_features_are_torch_fidelity_s(checkpoint: Path) -> None:
    features = Inception(checkpoint)(image())
    assert features.shape == (1, 2048)
    assert features[0, ::256].tolist() == pytest.approx(EXPECTED, abs=1e-4)
    assert float(features.mean()) == pytest.approx(EXPECTED_MEAN, rel=1e-5)
    assert float(features.square().mean()) == pytest.approx(EXPECTED_SQUARE, rel=1e-5)


def test_the_fid_as_a_metric(checkpoint: Path) -> None:
    pixels = image(4).permute(0, 2, 3, 1).numpy()
    masks = [np.zeros((40, 64), np.uint8)] * 4
    result = measure(FrechetDistance(inception=str(checkpoint), device='cpu', prefix='fid'),
                     generated(*zip(pixels[:2], masks)), real=pixels[2:])
    rows = Inception(checkpoint)(image(4))
    expected = frechet_distance(Gaussian.fit(rows[:2]), Gaussian.fit(rows[2:]))
    assert result == pytest.approx({'fid/distance': expected, 'fid/images': 2, 'fid/real_images': 2}, rel=1e-3)


def test_resizing_looks_pixels_up_at_whole_numbers() -> None:
    """Two pixels to four: 0, 0.5, 1 and the border; torch's own resize would give 0, 0.25, 0.75, 1."""
    row = torch.tensor([0.0, 1.0]).expand(1, 1, 2, 2)
    torch.testing.assert_close(resize_as_tensorflow(row, 4)[0, 0, 0], torch.tensor([0.0, 0.5, 1.0, 1.0]))
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    torch.testing.assert_close(resize_as_tensorflow(ramp, 4)[0, 0, 0], torch.tensor([0.0, 2.0, 4.0, 6.0]))
    torch.testing.assert_close(resize_as_tensorflow(ramp, 8), ramp)


def test_a_file_of_another_network(tmp_path: Path) -> None:
    torch.save({'conv.weight': torch.zeros(3)}, tmp_path / 'w.pth')
    with pytest.raises(ValueError, match='does not fit Inception: .*missing in the file'):
        Inception(tmp_path / 'w.pth')
