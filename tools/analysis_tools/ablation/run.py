"""Guidance ablation: what each rule does to the images, over how many steps it guides and over seeds.

All variants of a seed have the same masks and noise, so their differences are the rules' alone.
"""
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from ablation.bench import AblationBench
from ablation.plan import AblationOptions, TrainedParts, Variant
from ablation.store import MASKS, AblationStore, Measurement
from tqdm import tqdm

from mmsynth.utils import progress_bar


def run_ablation(parts: Sequence[TrainedParts], out_dir: str | Path, options: AblationOptions) -> list[Measurement]:
    """Measure every variant under every seed; what is in the folder already is not measured again.

    Several processes may measure different seeds in one folder.

    Args:
        parts: The trained parts, each with its seeds.
        out_dir: Where measurements and pictures go.
        options: What is measured.

    Returns:
        The measurements, seed by seed, 'none' first.

    Raises:
        FileNotFoundError: If a trained part does not exist.
        ValueError: If parts, options and the folder's measurements do not fit each other.
    """
    _check_seeds(parts)
    store = AblationStore(out_dir)
    benches = [AblationBench(part, options) for part in parts]
    runs = [(bench, seed, variant) for bench in benches for seed in bench.parts.seeds for variant in options.variants]
    missing = [run for run in runs if _read(store, *run) is None]
    count = {bench: len(bench.requests[seed]) for bench, seed, _ in runs}  # the same for all seeds
    total, left = (sum(count[bench] for bench, *_ in some) for some in (runs, missing))
    with progress_bar(total=total, initial=total - left, unit='img', title='ablation') as bar:
        for bench, of_bench in groupby(missing, key=itemgetter(0)):
            _measure(bench, [run[1:] for run in of_bench], store, bar)
    return [_read(store, *run) for run in runs]


def _measure(bench: AblationBench, runs: Sequence[tuple[int, Variant]], store: AblationStore, bar: tqdm) -> None:
    """Measure and store; what does not fit is found before the first image is generated."""
    for variant in {variant for _, variant in runs}:
        bench.check(variant)
    for seed, variant in runs:
        if not store.read_pictures(MASKS, seed):
            bench.write_masks(seed, store)
        bar.set_description(f'seed {seed}, {variant.name}')
        store.write(bench.measure(variant, seed, store, bar), _settings(bench, variant))
    bench.release()


def _read(store: AblationStore, bench: AblationBench, seed: int, variant: Variant) -> Measurement | None:
    return store.read(variant, seed, _settings(bench, variant))


def _settings(bench: AblationBench, variant: Variant) -> dict[str, Any]:
    return bench.settings | dict(guidance=variant.settings)


def _check_seeds(parts: Sequence[TrainedParts]) -> None:
    seeds = [seed for part in parts for seed in part.seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f'`seeds` must be at least one and all different, got {seeds}.')
