"""A generator's checkpoint → the folder of a pipeline."""
from pathlib import Path

from mmengine.config import Config

from mmsynth.apis.inference import classes_of
from mmsynth.models import TODSynth
from mmsynth.models.convert import Conversion, check_out, read_generator
from mmsynth.pipelines.tisynth import TISynthPipeline
from mmsynth.pipelines.todsynth import TODSynthPipeline
from mmsynth.utils.files import atomic_path


def convert_to_pipeline(cfg: Config, checkpoint: str | Path, out: str | Path, *,
                        merge_lora: bool = False) -> Conversion:
    """Write a generator's checkpoint as a folder for ``from_pretrained`` of its pipeline.

    Args:
        cfg: The config that the checkpoint was trained with; its ``pretrained`` backbone and its prompt cache are read
            as well. ``synthesis.dataset`` gives the names of the classes.
        checkpoint: mmengine's .pth, .safetensors, or a release's file or folder.
        out: A new folder.
        merge_lora: Add the low-rank updates to the weights, which a pipeline asks for.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        FileExistsError: If ``out`` is there already.
        ValueError: If the checkpoint does not fit the config, or the generator has parts that a pipeline cannot have.
    """
    out = Path(out)
    check_out(out, 'pipeline', ['pipeline'])
    generator, report, merged = read_generator(cfg, checkpoint, 'pipeline', merge_lora=merge_lora)
    classes = classes_of(cfg.get('synthesis', {}).get('dataset', {}))
    if classes is not None:
        generator.dataset_meta = dict(classes=classes)
    kind = TODSynthPipeline if isinstance(generator, TODSynth) else TISynthPipeline
    pipeline = kind.from_generator(generator)
    with atomic_path(out, folder=True) as draft:
        pipeline.save_pretrained(draft)
    parts = {name: type(part).__name__ for name, part in pipeline.components.items() if part is not None}
    return Conversion(report, merged, [f'{out}: {kind.__name__}'] + [f'{out}/{name}: {part}'
                                                                    for name, part in parts.items()], [])
