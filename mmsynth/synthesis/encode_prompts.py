"""Fill the prompt cache of a config: collect the distinct prompts of its datasets and encode each of them once."""
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from mmsynth.models.encoders import PromptCache, TextEncoder
from mmsynth.models.encoders.tensor_cache import CacheReport
from mmsynth.registry import MODELS
from mmsynth.synthesis.build import build_dataset, load_config
from mmsynth.synthesis.live_critics import without_live_critics
from mmsynth.utils import progress_bar
from mmsynth.utils.datasets import leaf_datasets
from mmsynth.utils.files import FolderLock, remove_temporaries
from mmsynth.utils.shards import Shard

NEGATIVE_PROMPT = ''  # of classifier-free guidance, and what prompt dropout trains with
_USUAL_ENCODERS = {'mmsynth.TISynth': 'mmsynth.CLIPTextEncoder'}  # of a generator; SD3's of any other
_WAIT = 60.  # seconds for another shard to clear the folder


def encode_prompts(config: Config | str | Path,
                   *,
                   cache_dir: str | Path | None = None,
                   pretrained: str | None = None,
                   batch_size: int = 8,
                   shard: Shard | None = None,
                   device: str = 'cpu') -> CacheReport:
    """Encode every prompt that a config's datasets can ask for, into its prompt cache.

    Args:
        config: The config, or its file. Its ``prompt_encoder`` is the encoder, ``model.text_encoder.cache_dir`` the
            cache. Of a segmentation config with OnlineSynthesisHook both are those of the hook's generator.
        cache_dir: Another folder for the cache.
        pretrained: Another folder or hub id for the encoder.
        batch_size: Prompts encoded together.
        shard: Which of several processes this is that fill one cache; encodes its share of the prompts.
        device: Where the encoder runs.

    Raises:
        ValueError: If the config names no encoder or no cache and none is given, if no dataset has prompts, or if the
            config reads another identity than the encoder's.
        RuntimeError: If another process is filling the cache that is no other shard.
    """
    config = load_config(config)
    reader = _cache_reader(config)
    folder = _cache_folder(reader, cache_dir)
    encoder_config = _encoder_config(reader, pretrained)
    if batch_size < 1:
        raise ValueError(f'`batch_size` must be at least 1, got {batch_size}.')
    prompts = collect_prompts(config)
    if shard is not None:
        prompts = list(shard.of(prompts))
    encoder: Any = _build_encoder(encoder_config).to(device)
    _check_identity(reader, folder, encoder.identity)
    cache = PromptCache(folder, encoder.identity)
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(RuntimeError), FolderLock(folder):  # of several processes the first clears what killed ones left
        remove_temporaries(folder)
    with (FolderLock(folder, shared=shard is not None, wait=0 if shard is None else _WAIT),
          progress_bar(total=len(cache.missing(prompts)), unit='prompt', title='encode') as bar):
        encoded = cache.encode_missing(prompts, encoder, batch_size=batch_size, progress=bar.update)
    size = sum(cache.path(prompt).stat().st_size for prompt in prompts)
    return CacheReport(folder, encoder.identity, 'prompts (with the empty one)', len(prompts), encoded, size)


def collect_prompts(config: Config) -> list[str]:
    """The distinct prompts of a config's datasets in their first order, after the empty one.

    Looks at the data sets of the data loaders, of ``synthesis``, and at the masks of OnlineSynthesisHook in
    ``custom_hooks`` (its own, or those of the config of its generator): at those of this package, and at those of
    others if their pipeline has BuildPrompt. The log says which are left out.

    Raises:
        ValueError: If no dataset has prompts.
    """
    prompts = {NEGATIVE_PROMPT: None}
    found, places = False, []
    for key, dataset_config in _dataset_configs(config):
        places.append(key)
        if not _may_have_prompts(dataset_config):
            print_log(f'{key} ({dataset_config["type"]}) has no prompts, and its pipeline no BuildPrompt: left out',
                      'current')
            continue
        for dataset in leaf_datasets(build_dataset(without_live_critics(dataset_config))):
            prompt_of = _prompt_reader(dataset, key)
            if prompt_of is None:
                print_log(f'{key} ({type(dataset).__name__}) has no prompts, and its pipeline no BuildPrompt: left out',
                          'current')
                continue
            found = True
            indices = progress_bar(range(len(dataset)), unit='record', title=f'prompts of {key}')
            prompts.update((prompt_of(index), None) for index in indices)
    if not found:
        raise ValueError(f'no data set of the config has prompts (looked at {", ".join(places) or "none"}). Add '
                         "dict(type='mmsynth.BuildPrompt') to the pipeline of one, or prompts to its manifest.")
    return list(prompts)


def _dataset_configs(config: Config) -> Iterator[tuple[str, dict]]:
    """The data sets to look at, with the place where they stand."""
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader', 'synthesis'):
        dataset = (config.get(key) or {}).get('dataset')
        if dataset is not None:
            yield f'{key}.dataset', dataset
    for place, hook in _online_hooks(config):
        if hook.get('masks') is not None:
            yield f'{place}.masks', hook['masks']
            continue
        generator = _generator_config(hook)
        masks = generator and (generator.get('synthesis') or {}).get('dataset')
        if masks:
            yield f'{place}.generator.config, synthesis.dataset', masks
        else:
            print_log(f'{place} (OnlineSynthesisHook) names no masks, nor does the config of its generator: left out',
                      'current')


def _online_hooks(config: Config) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The config's OnlineSynthesisHooks, with the place where they stand."""
    for number, hook in enumerate(config.get('custom_hooks') or ()):
        if str(hook.get('type')).endswith('OnlineSynthesisHook'):
            yield f'custom_hooks[{number}]', hook


def _generator_config(hook: Mapping[str, Any]) -> Config | None:
    """The config of an OnlineSynthesisHook's generator."""
    config = (hook.get('generator') or {}).get('config')
    return None if config is None else load_config(config)


def _cache_reader(config: Config) -> Config:
    """The config whose model reads the cache: the one given, or in a segmentor's training its online generator's.

    Raises:
        ValueError: If generators of several hooks read different caches.
    """
    if (config.get('model') or {}).get('text_encoder'):
        return config
    generators = [generator for _, hook in _online_hooks(config) if (generator := _generator_config(hook))]
    readers = [generator for generator in generators if (generator.get('model') or {}).get('text_encoder')]
    if any(other.model.text_encoder != readers[0].model.text_encoder for other in readers[1:]):
        raise ValueError('`custom_hooks`: the generators of several OnlineSynthesisHooks read different prompt caches; '
                         'encode with the config of each generator in turn.')
    return readers[0] if readers else config


def _may_have_prompts(cfg: Any) -> bool:
    """Whether a data set may have prompts: if it is one of this package, or something in its pipeline builds them."""
    if isinstance(cfg, Mapping):
        kind = str(cfg.get('type'))
        return kind.endswith('BuildPrompt') or kind.startswith('mmsynth.') and 'Dataset' in kind or any(
            _may_have_prompts(value) for value in cfg.values())
    return isinstance(cfg, (list, tuple)) and any(_may_have_prompts(item) for item in cfg)


def _prompt_reader(dataset: Any, key: str) -> Callable[[int], str] | None:
    """What gives the prompt of record i, or None for a dataset without prompts."""
    pipeline = getattr(getattr(dataset, 'pipeline', None), 'transforms', [])
    names = [type(transform).__name__ for transform in pipeline]
    builders = [index for index, name in enumerate(names) if name.endswith('BuildPrompt')]
    transforms = pipeline[:builders[-1] + 1] if builders else []
    if not builders and not any('prompt' in dataset.get_data_info(index) for index in range(len(dataset))):
        return None
    random = [name for name in names[:len(transforms)] if name.startswith('Random') and name != 'RandomFlip']
    if random:
        print_log(
            f'{key}: {", ".join(random)} before BuildPrompt: what a random cut leaves in the mask differs from '
            'reading to reading, so training may ask for prompts that are not collected here. With a prompt cache, put '
            'BuildPrompt before it, or cut at fixed places.',
            'current', logging.WARNING)

    def prompt_of(index: int) -> str:
        results = dataset.get_data_info(index)
        for transform in transforms:
            results = transform(results)
            if results is None:
                raise ValueError(f'{key}: record {index} is dropped by {type(transform).__name__} before its '
                                 'prompt is built; take it out of the dataset or put BuildPrompt before it.')
        if not isinstance(results.get('prompt'), str):
            raise ValueError(f'{key}: record {index} has the prompt {results.get("prompt")!r}; it must be a '
                             "string. Complete the records, or add dict(type='mmsynth.BuildPrompt') to the pipeline.")
        return results['prompt']

    return prompt_of


def _cache_folder(config: Config, cache_dir: str | Path | None) -> Path:
    reader = (config.get('model') or {}).get('text_encoder') or {}
    folder = cache_dir or reader.get('cache_dir')
    if not folder:
        raise ValueError('the config names no prompt cache; set model.text_encoder = '
                         "dict(type='mmsynth.CachedTextEncoder', cache_dir=...) or give `cache_dir` (--cache-dir).")
    return Path(folder)


def _encoder_config(config: Config, pretrained: str | None) -> dict:
    encoder = dict(config.get('prompt_encoder') or {})
    usual = _USUAL_ENCODERS.get(str((config.get('model') or {}).get('type')), 'mmsynth.SD3TextEncoder')
    if not encoder and not pretrained:
        raise ValueError('the config names no encoder; set prompt_encoder = '
                         f"dict(type='{usual}', pretrained=...) or give `pretrained` (--pretrained).")
    encoder.setdefault('type', usual)
    if pretrained:
        encoder['pretrained'] = pretrained
    return encoder


def _build_encoder(encoder_config: dict) -> TextEncoder:
    encoder = MODELS.build(encoder_config)
    if not isinstance(getattr(encoder, 'identity', None), str):
        raise ValueError(f'`prompt_encoder`: {type(encoder).__name__} cannot fill a cache, having no `identity`; use '
                         'an encoder with fixed weights such as mmsynth.SD3TextEncoder.')
    return encoder


def _check_identity(config: Config, folder: Path, identity: str) -> None:
    """Refuse to write what the config's reader would not read; warn where it will have to choose."""
    wanted = ((config.get('model') or {}).get('text_encoder') or {}).get('identity')
    if wanted and wanted != identity:
        raise ValueError(f'model.text_encoder.identity is {wanted}, the encoder has {identity}: what is encoded now '
                         'would not be read. Correct the identity or `prompt_encoder`.')
    others = [known for known in PromptCache.identities(folder) if known != identity]
    if others and not wanted:
        print_log(
            f'{folder} also holds embeddings of {", ".join(others)}: set model.text_encoder.identity = {identity!r} to '
            'read those of this run, or use another --cache-dir.', 'current', logging.WARNING)
