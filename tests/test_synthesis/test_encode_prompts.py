import importlib.util
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.dataset import BaseDataset

from mmsynth.models.encoders import CachedTextEncoder, PromptCache, SD3TextEncoder
from mmsynth.registry import DATASETS, TRANSFORMS
from mmsynth.synthesis.encode_prompts import collect_prompts, encode_prompts
from mmsynth.utils.shards import Shard

ROOT = Path(__file__).resolve().parents[2]


@DATASETS.register_module(force=True)
class RecordsDataset(BaseDataset):
    """Records given in the config."""

    def __init__(self, records, pipeline=()) -> None:
        self.records = records
        super().__init__(pipeline=list(pipeline))

    def load_data_list(self) -> list[dict]:
        return [dict(record) for record in self.records]


@TRANSFORMS.register_module(force=True)
class WordsBuildPrompt(BaseTransform):
    """Stands in for BuildPrompt: the record carries its class names."""

    def transform(self, results: dict) -> dict:
        return {**results, 'prompt': 'a satellite image of ' + ', '.join(results['names'])}


@TRANSFORMS.register_module(force=True)
class MustNotRun(BaseTransform):

    def transform(self, results: dict) -> dict:
        raise AssertionError('a transform after BuildPrompt has run')


@TRANSFORMS.register_module(force=True)
class DropAll(BaseTransform):

    def transform(self, results: dict) -> None:
        return None


@TRANSFORMS.register_module(force=True)
class RandomCut(BaseTransform):

    def transform(self, results: dict) -> dict:
        return results


def records(*prompts: str, **changes) -> dict:
    return dict(type='mmsynth.RecordsDataset', records=[dict(prompt=prompt) for prompt in prompts], **changes)


def built(*transforms: str) -> dict:
    return dict(
        type='mmsynth.RecordsDataset',
        records=[dict(names=['road']), dict(names=['park', 'water'])],
        pipeline=[dict(type=f'mmsynth.{name}') for name in transforms])


def make_config(folder: Path, tiny_sd3: Path, **changes) -> Config:
    return Config(
        dict(
            default_scope='mmseg',
            prompt_encoder=dict(
                type='mmsynth.SD3TextEncoder', pretrained=str(tiny_sd3), max_sequence_length=8, dtype='float32'),
            model=dict(text_encoder=dict(type='mmsynth.CachedTextEncoder', cache_dir=str(folder))),
            train_dataloader=dict(dataset=records('road', 'park', 'road', '')),
            **changes))


def test_cache_gives_what_the_encoder_gives(tiny_sd3, tmp_path):
    report = encode_prompts(make_config(tmp_path / 'cache', tiny_sd3), batch_size=2)
    assert (report.distinct, report.encoded) == (3, 3)
    encoder = SD3TextEncoder(str(tiny_sd3), max_sequence_length=8, dtype='float32')
    read, given = (source.encode(['park', '', 'road']) for source in (CachedTextEncoder(tmp_path / 'cache'), encoder))
    for one, other in zip(read, given):
        torch.testing.assert_close(one, other)
    assert report.identity == encoder.identity


def test_second_run_adds_only_what_is_new(tiny_sd3, tmp_path):
    config = make_config(tmp_path / 'cache', tiny_sd3)
    first = encode_prompts(config)
    config.train_dataloader.dataset.records.append(dict(prompt='water'))
    second = encode_prompts(config)
    assert (second.distinct, second.encoded) == (4, 1) and second.size_bytes > first.size_bytes
    assert second.size_bytes == sum(path.stat().st_size for path in (tmp_path / 'cache').glob('*.safetensors'))
    assert '4 distinct prompts' in str(second) and '3 were cached, 1 encoded' in str(second)


def test_shards_fill_the_cache_together(tiny_sd3, tmp_path):
    config = make_config(tmp_path / 'cache', tiny_sd3, val_dataloader=dict(dataset=records('a', 'b')))
    reports = [encode_prompts(config, shard=Shard(index, 2)) for index in range(2)]
    assert [(report.distinct, report.encoded) for report in reports] == [(3, 3), (2, 2)]
    assert encode_prompts(config).encoded == 0


def test_pipeline_runs_up_to_the_prompt_only():
    config = Config(dict(train_dataloader=dict(dataset=built('WordsBuildPrompt', 'MustNotRun'))))
    assert collect_prompts(config) == ['', 'a satellite image of road', 'a satellite image of park, water']


def test_all_datasets_and_wrappers_are_looked_at():
    wrapped = dict(
        type='ConcatDataset',
        datasets=[records('a', 'b'), dict(type='RepeatDataset', dataset=records('c'), times=2)])
    config = Config(
        dict(
            train_dataloader=dict(dataset=wrapped),
            val_dataloader=dict(dataset=records('d', 'a')),
            test_dataloader=dict(dataset=records('e')),
            synthesis=dict(dataset=records('f'))))
    assert collect_prompts(config) == ['', 'a', 'b', 'c', 'd', 'e', 'f']


def test_a_validation_set_of_another_package_is_looked_at(tmp_path):
    """mmseg's LoveDA with BuildPrompt: what a generator's validation asks the cache for."""
    for name, folder in (('a.png', 'img'), ('a.png', 'ann')):
        (tmp_path / folder).mkdir()
        mmcv.imwrite(np.full((2, 2), 3, dtype=np.uint8), str(tmp_path / folder / name))
    dataset = dict(
        type='LoveDADataset', data_root=str(tmp_path), data_prefix=dict(img_path='img', seg_map_path='ann'),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True),
                  dict(type='mmsynth.BuildPrompt', classes=('background', 'building', 'road'))])
    assert collect_prompts(Config(dict(val_dataloader=dict(dataset=dataset)))) == ['', 'a satellite image of road']


def test_masks_of_online_synthesis_are_looked_at(tmp_path):
    def uncertain(prompt):
        """Masks that only a segmentor in training can choose."""
        return dict(type='mmsynth.UncertainMasks', critic='runner', dataset=records(prompt))

    (tmp_path / 'generator.py').write_text(f'synthesis = dict(dataset={uncertain("b")!r})\n')
    hooks = [dict(type='mmsynth.OnlineSynthesisHook', masks=uncertain('a')),
             dict(type='mmsynth.OnlineSynthesisHook', generator=dict(config=str(tmp_path / 'generator.py'))),
             dict(type='EMAHook')]
    assert collect_prompts(Config(dict(custom_hooks=hooks))) == ['', 'a', 'b']


def test_a_segmentors_config_fills_the_cache_of_its_online_generator(tiny_sd3, tmp_path):
    """The advice of a failing training is to run the tool with that training's config."""
    generator = make_config(tmp_path / 'cache', tiny_sd3, synthesis=dict(dataset=records('of the masks')))
    generator.dump(tmp_path / 'generator.py')
    for named in (str(tmp_path / 'generator.py'), generator.to_dict()):
        hook = dict(type='mmsynth.OnlineSynthesisHook', generator=dict(config=named, checkpoint='x'))
        report = encode_prompts(Config(dict(model=dict(type='EncoderDecoder'), custom_hooks=[hook])))
        assert report.folder == tmp_path / 'cache' and report.distinct == 2
    CachedTextEncoder(tmp_path / 'cache').encode(['of the masks'])


def test_what_is_left_out_is_logged(monkeypatch):
    logged = []
    monkeypatch.setattr('mmsynth.synthesis.encode_prompts.print_log', lambda message, *_: logged.append(message))
    plain = dict(type='mmsynth.RecordsDataset', records=[dict(img_path='x')])
    collect_prompts(Config(dict(
        train_dataloader=dict(dataset=records('a')), val_dataloader=dict(dataset=dict(type='SomeOtherDataset')),
        test_dataloader=dict(dataset=plain), custom_hooks=[dict(type='mmsynth.OnlineSynthesisHook')])))
    assert [line.split()[0] for line in logged] == ['val_dataloader.dataset', 'test_dataloader.dataset',
                                                    'custom_hooks[0]']


def test_manifest_dataset(tmp_path):
    mmcv.imwrite(np.array([[0, 1], [1, 255]], dtype=np.uint8), str(tmp_path / 'a.png'))
    mmcv.imwrite(np.array([[2, 2], [2, 2]], dtype=np.uint8), str(tmp_path / 'b.png'))
    (tmp_path / 'manifest.jsonl').write_text('{"source": "a.png"}\n{"source": "b.png", "prompt": "written by hand"}\n')
    dataset = dict(
        type='mmsynth.ManifestDataset',
        data_root=str(tmp_path),
        ann_file='manifest.jsonl',
        masks_only=True,
        metainfo=dict(classes=('road', 'park', 'water')),
        pipeline=[dict(type='mmsynth.LoadSegMap'), dict(type='mmsynth.BuildPrompt', overwrite=False)])
    expected = ['', 'a satellite image of road, park', 'written by hand']
    assert collect_prompts(Config(dict(synthesis=dict(dataset=dataset)))) == expected


def test_datasets_without_prompts_are_passed_over():
    plain = dict(type='mmsynth.RecordsDataset', records=[dict(img_path='x')])
    foreign = dict(type='SomeOtherDataset')  # not even built: validation of an ordinary segmentation config
    config = Config(
        dict(
            train_dataloader=dict(dataset=plain),
            val_dataloader=dict(dataset=foreign),
            synthesis=dict(dataset=records('e'))))
    assert collect_prompts(config) == ['', 'e']
    with pytest.raises(ValueError, match='no data set .*BuildPrompt'):
        collect_prompts(Config(dict(train_dataloader=dict(dataset=plain))))


def test_random_cut_before_the_prompt_is_warned_about(monkeypatch):
    said = []
    monkeypatch.setattr('mmsynth.synthesis.encode_prompts.print_log', lambda message, *_: said.append(message))
    collect_prompts(Config(dict(train_dataloader=dict(dataset=built('WordsBuildPrompt', 'RandomCut')))))
    assert not said
    collect_prompts(Config(dict(train_dataloader=dict(dataset=built('RandomCut', 'WordsBuildPrompt')))))
    assert len(said) == 1 and 'RandomCut before BuildPrompt' in said[0]


def test_command_line(tiny_sd3, tmp_path, capsys):
    make_config(tmp_path / 'unused', 'set/on_the_command_line').dump(tmp_path / 'config.py')
    script = importlib.util.spec_from_file_location('encode_prompts_tool', ROOT / 'tools' / 'encode_prompts.py')
    tool = importlib.util.module_from_spec(script)
    script.loader.exec_module(tool)
    tool.main([
        str(tmp_path / 'config.py'), '--pretrained', str(tiny_sd3), '--cache-dir', str(tmp_path / 'cache'),
        '--cfg-options', 'prompt_encoder.max_sequence_length=5'])
    assert '3 distinct prompts' in capsys.readouterr().out
    assert [identity.split('-')[2] for identity in PromptCache.identities(tmp_path / 'cache')] == ['n5']
    assert not (tmp_path / 'unused').exists()


class TestMistakes:

    def test_no_cache_or_no_encoder(self, tiny_sd3, tmp_path):
        config = make_config(tmp_path, tiny_sd3)
        config.pop('prompt_encoder')
        with pytest.raises(ValueError, match='prompt_encoder = .*--pretrained'):
            encode_prompts(config)
        config.model.type = 'mmsynth.TISynth'
        with pytest.raises(ValueError, match=r"prompt_encoder = dict\(type='mmsynth.CLIPTextEncoder'"):
            encode_prompts(config)
        config.pop('model')
        with pytest.raises(ValueError, match='model.text_encoder = .*--cache-dir'):
            encode_prompts(config)

    def test_encoder_that_learns(self, tiny_sd3, tmp_path):
        config = make_config(tmp_path, tiny_sd3)
        config.prompt_encoder = dict(
            type='mmsynth.ClassNameEmbedding', classes=['road'], embed_dims=2, pooled_dims=2)
        with pytest.raises(ValueError, match='ClassNameEmbedding cannot fill a cache'):
            encode_prompts(config)

    def test_identity_that_the_config_would_not_read(self, tiny_sd3, tmp_path):
        config = make_config(tmp_path / 'cache', tiny_sd3)
        config.model.text_encoder.identity = 'sd3-of-yesterday'
        with pytest.raises(ValueError, match='sd3-of-yesterday, .* sd3-'):
            encode_prompts(config)
        assert not (tmp_path / 'cache').exists()

    def test_dropped_record(self):
        config = Config(dict(train_dataloader=dict(dataset=built('DropAll', 'WordsBuildPrompt'))))
        with pytest.raises(ValueError, match='train_dataloader.dataset: record 0 .*DropAll'):
            collect_prompts(config)

    def test_prompt_that_is_no_string(self):
        config = Config(dict(synthesis=dict(dataset=records('a', 7))))
        with pytest.raises(ValueError, match='synthesis.dataset: record 1 has the prompt 7'):
            collect_prompts(config)

    def test_record_without_prompt_among_others(self):
        config = Config(dict(synthesis=dict(dataset=records('a'))))
        config.synthesis.dataset.records.insert(0, dict(img_path='x'))
        with pytest.raises(ValueError, match='record 0 .*None'):
            collect_prompts(config)
