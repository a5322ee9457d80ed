"""Generators, critics and single images, for scripts and notebooks."""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import PixelData
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mmsynth.datasets.records import read_meta_file
from mmsynth.datasets.transforms.references import fit_reference
from mmsynth.guidance import CRFM, Critic, Guidance, ModuleCritic, SegmentorCritic, TransformersCritic
from mmsynth.registry import DATASETS, MODELS
from mmsynth.structures import SynthDataSample
from mmsynth.synthesis import Generator, build_generator, load_config
from mmsynth.utils import derive_seed
from mmsynth.utils.batches import batches_of_one_shape
from mmsynth.utils.prompts import build_prompt

Picture = NDArray[np.integer] | Image.Image | Tensor
_CONFIG_SUFFIXES = ('.py', '.json', '.yaml', '.yml')


def init_generator(config: str | Path | Config, checkpoint: str | Path | None = None,
                   device: torch.device | str = 'cpu') -> Generator:
    """Build a generator and load its weights.

    Args:
        config: A config whose ``model`` is a generator, or its path.
        checkpoint: Its weights: a .pth or .safetensors file, or a folder that a release wrote; None for one
            that comes whole from a backbone.
        device: Where it runs.

    Returns:
        The generator, in eval mode. Its ``dataset_meta`` has the ``classes`` of the config's masks, if it names some.

    Raises:
        ValueError: If the model is no generator, or the weights do not fit.
        FileNotFoundError: If a file does not exist.
    """
    cfg = load_config(config)
    generator = build_generator(cfg, checkpoint, device)
    classes = classes_of(cfg.get('synthesis', {}).get('dataset', {}))
    if classes is not None:
        setattr(generator, 'dataset_meta', dict(classes=classes))  # noqa: B010  (not in every generator's interface)
    return generator


def init_critic(model: str | Path | Config | Mapping[str, Any] | nn.Module, checkpoint: str | Path | None = None,
                device: torch.device | str = 'cpu', **options: Any) -> Critic:
    """Build a critic, which guides, filters or judges, of any segmentation model.

    Args:
        model: An mmseg config, or its path; the folder or hub id of a model of transformers
            (:class:`~mmsynth.guidance.TransformersCritic`); the config of a critic (``type='mmsynth.…'``); an mmseg
            segmentor; or another torch module, which is frozen (:class:`~mmsynth.guidance.ModuleCritic`).
        checkpoint: The weights; None for those that the model has, of a config random ones.
        device: Where it runs.
        **options: Of the critic's class; a torch module needs ``num_classes``.

    Returns:
        The critic, frozen, with ``predict_logits(images)`` and ``num_classes``.

    Raises:
        ValueError: If the model cannot be a critic, or the weights do not fit.
        FileNotFoundError: If a file does not exist.
    """
    from mmseg.models import BaseSegmentor
    weights = None if checkpoint is None else str(checkpoint)
    if isinstance(model, (str, Path)) and not str(model).endswith(_CONFIG_SUFFIXES):
        if weights is not None:
            raise ValueError(f'`checkpoint` has no effect: {model} is a model of transformers, with weights of its '
                             'own; for an mmseg config give the path of its file.')
        critic: Critic = TransformersCritic(str(model), **options)
    elif isinstance(model, BaseSegmentor):
        critic = SegmentorCritic(segmentor=model, checkpoint=weights, **options)
    elif isinstance(model, nn.Module):
        critic = ModuleCritic(model, checkpoint=weights, **options)
    elif isinstance(model, Mapping) and 'type' in model and 'model' not in model:
        critic = MODELS.build(dict(model, **options) | ({} if weights is None else dict(checkpoint=weights)))
    else:
        critic = SegmentorCritic(str(model) if isinstance(model, Path) else model, weights, **options)
    return critic.to(device)


def generate(generator: Generator,
             masks: Sequence[Picture],
             prompts: Sequence[str] | None = None,
             references: Sequence[Picture] | None = None,
             critic: Critic | Guidance | None = None,
             seed: int = 0,
             batch_size: int = 4) -> list[NDArray[np.uint8]]:
    """Generate an image for each mask.

    Args:
        generator: Of :func:`init_generator`.
        masks: Class ids (H, W), 255 where unlabelled: arrays, tensors, or pictures of one channel.
        prompts: One per mask; by default the names of the classes in it, as in training.
        references: Of TISynth, one per mask: RGB (h, w, 3), 0 to 255, of any size.
        critic: Guides by :class:`~mmsynth.guidance.CRFM` with its defaults; or a guidance of your own.
        seed: An image depends on this, on its mask's number and on its mask, not on ``batch_size``.
        batch_size: Images generated together.

    Returns:
        Images (H, W, 3), uint8, RGB, in the order of the masks.

    Raises:
        ValueError: If counts or shapes do not fit, or prompts are needed and cannot be made.
    """
    meta = getattr(generator, 'dataset_meta', None) or {}
    samples = make_samples(masks, prompts, references, meta.get('classes'))
    guidance = CRFM(critic) if isinstance(critic, Critic) else critic
    if guidance is not None:
        generator.check_guidance(guidance)
    seeds = [derive_seed(seed, 'generate', number) for number in range(len(samples))]
    images: list[NDArray[np.uint8]] = []
    pairs = zip(seeds, samples)
    for batch in batches_of_one_shape(pairs, lambda item: tuple(item[1].gt_sem_seg.shape), batch_size):
        data = generator.data_preprocessor(dict(data_samples=[sample for _, sample in batch]))
        done = generator.synthesize(data['data_samples'], [own for own, _ in batch], guidance=guidance)
        images += [sample.generated_img.data.permute(1, 2, 0).numpy() for sample in done]
    return images


def make_samples(masks: Sequence[Picture], prompts: Sequence[str] | None, references: Sequence[Picture] | None,
                 classes: Sequence[str] | None) -> list[SynthDataSample]:
    """What a generator's data preprocessor is given for masks from memory.

    Args:
        masks, prompts, references: As in :func:`generate`.
        classes: Names of the classes, of which prompts are made where none are given.

    Raises:
        ValueError: If counts or shapes do not fit, or prompts are needed and cannot be made.
    """
    ids = [_as_mask(mask, number) for number, mask in enumerate(masks)]
    for option, given in (('prompts', prompts), ('references', references)):
        if given is not None and len(given) != len(ids):
            raise ValueError(f'`{option}` must be one per mask, got {len(given)} for {len(ids)} masks.')
    if prompts is None:
        if not classes:
            raise ValueError('`prompts` are needed: the generator does not know the names of its classes; give them '
                             "to it, as generator.dataset_meta = dict(classes=('road', …)).")
        prompts = [build_prompt(mask, classes) for mask in ids]
    samples = []
    for number, (mask, prompt) in enumerate(zip(ids, prompts)):
        sample = SynthDataSample(metainfo=dict(sample_id=str(number), prompt=prompt))
        sample.gt_sem_seg = PixelData(data=torch.from_numpy(mask)[None])
        if references is not None:
            reference = fit_reference(_as_image(references[number], number), mask.shape, 'resize')
            sample.reference = PixelData(data=torch.from_numpy(reference[..., ::-1].copy()).permute(2, 0, 1))
        samples.append(sample)
    return samples


def _as_array(picture: Picture) -> NDArray:
    return picture.detach().cpu().numpy() if isinstance(picture, Tensor) else np.asarray(picture)


def _as_mask(picture: Picture, number: int) -> NDArray[np.int64]:
    mask = _as_array(picture)
    if mask.ndim != 2 or not np.issubdtype(mask.dtype, np.integer):
        raise ValueError(f'`masks`: number {number} must be class ids (H, W), integer, got {mask.dtype} of the shape '
                         f'{mask.shape}; a picture in colours must be brought to ids first.')
    return np.ascontiguousarray(mask, np.int64)


def _as_image(picture: Picture, number: int) -> NDArray[np.uint8]:
    image = _as_array(picture)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f'`references`: number {number} must be RGB (h, w, 3), uint8, got {image.dtype} of the shape '
                         f'{image.shape}.')
    return np.ascontiguousarray(image)


def classes_of(dataset: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The class names that a data set's config gives, or its class declares."""
    while 'dataset' in dataset:  # mask sources and wrappers stand around another
        dataset = dataset['dataset']
    own = (dataset.get('metainfo') or {}).get('classes')
    declared = getattr(DATASETS.get(str(dataset.get('type'))), 'METAINFO', {}).get('classes')
    if own is None and dataset.get('meta_file'):
        path = Path(dataset.get('data_root') or '') / dataset['meta_file']
        own = read_meta_file(str(path)).get('classes') if path.is_file() else None
    names = own or declared
    return None if names is None else tuple(names)
