"""The published sets: where images and masks lie in each archive, what their labels mean, and how they are divided.

Every function here reads the list of an archive's files and returns its pairs and a recipe for
:func:`mmsynth.datasets.conversion.convert`. Layouts, licences and links: docs/en/dataset_prepare.md.
"""
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from mmengine.logging import print_log
from mmseg.datasets import BaseSegDataset, LoveDADataset, PotsdamDataset, iSAIDDataset

from mmsynth.datasets.conversion.class_table import ClassTable, Colour
from mmsynth.datasets.conversion.convert import Pair, Recipe
from mmsynth.datasets.conversion.files import SourceFile, list_files
from mmsynth.datasets.conversion.picture import StretchRule
from mmsynth.datasets.conversion.raster import IMAGE_SUFFIXES
from mmsynth.datasets.conversion.split import SplitRule, divide, place_of
from mmsynth.datasets.dubai import DubaiDataset
from mmsynth.datasets.fusu import FUSUDataset
from mmsynth.datasets.gid import GIDDataset
from mmsynth.utils.labels import IGNORE_INDEX
from mmsynth.utils.messages import first_few

Groups = Mapping[str, str]  # the named groups of a pattern that are in the path → what they match
Converted = tuple[list[Pair], Recipe]
Found = list[tuple[Groups, SourceFile, SourceFile | None]]

BLACK = (0, 0, 0)
# mmseg's division of Potsdam: the tiles with labels of the benchmark train, those published later validate
POTSDAM_VAL = ('2_13', '2_14', '3_13', '3_14', '4_13', '4_14', '4_15', '5_13', '5_14', '5_15', '6_13', '6_14', '6_15',
               '7_13')


def _classes_of(dataset: type[BaseSegDataset]) -> tuple[tuple[str, ...], tuple[Colour, ...]]:
    """Classes and palette of a data set."""
    meta = dataset.METAINFO
    return tuple(meta['classes']), tuple((red, green, blue) for red, green, blue in meta['palette'])


GID_CLASSES: Mapping[int, Mapping[str, Colour]] = {
    5: {'built-up': (255, 0, 0), 'farmland': (0, 255, 0), 'forest': (0, 255, 255), 'meadow': (255, 255, 0),
        'water': (0, 0, 255)},
    15: {'industrial land': (200, 0, 0), 'urban residential': (250, 0, 150), 'rural residential': (200, 150, 150),
         'traffic land': (250, 150, 150), 'paddy field': (0, 200, 0), 'irrigated land': (150, 250, 0),
         'dry cropland': (150, 200, 150), 'garden plot': (200, 0, 200), 'arbor woodland': (150, 0, 250),
         'shrub land': (150, 150, 250), 'natural grassland': (250, 200, 0), 'artificial grassland': (200, 200, 0),
         'river': (0, 0, 200), 'lake': (0, 150, 200), 'pond': (0, 200, 250)},
    24: dict(zip(*_classes_of(GIDDataset)))}  # yapf: disable
# folder of the images → which bands are red, green and blue; the first that is there is taken
GID_IMAGES = {'rgb': (r'[Ii]mage_RGB', None), '8bit': (r'Image_+8bit_NirRGB|image_NirRGB', (2, 3, 4)),
              '16bit': (r'Image_+16bit_BGRNir', (3, 2, 1))}  # yapf: disable


def loveda(source: str | Path) -> Converted:
    """LoveDA: {Train,Val,Test}/{Rural,Urban}/{images_png,masks_png}/N.png; labels 0 (no data), 1 … 7; Test has none.

    Images also appear as published, below Train/Rural and so on, for what goes from one domain to the other.
    """
    where = r'(?:^|/)(?P<part>Train|Val|Test)/(?P<domain>Rural|Urban)/'
    found = _match(
        list_files(source), 'LoveDA', where + r'images_png/(?P<name>\d+)\.png$',
        where + r'masks_png/(?P<name>\d+)\.png$',
        'Train.zip, Val.zip and, if wanted, Test.zip, or what is in them: Train/Rural/images_png/0.png …',
        unlabelled=lambda groups: groups['part'] == 'Test')
    pairs = []
    for groups, image, mask in found:
        domain = f'{groups["part"]}/{groups["domain"]}'
        pairs.append(Pair(groups['name'], image, mask, groups['part'].lower(), f'{domain}/{groups["name"]}',
                          also=(f'{domain}/images_png', f'{domain}/masks_png')))
    table = ClassTable.of_ids(*_classes_of(LoveDADataset), first=1, ignored=(0, IGNORE_INDEX))
    return pairs, Recipe('LoveDA', table, layout='folders', zero_is_ignored=True, about=dict(
        licence='CC BY-NC-SA 4.0', homepage='github.com/Junjue-Wang/LoveDA'))


def potsdam(source: str | Path, labels: Literal['no-boundary', 'all'] | None = None) -> Converted:
    """ISPRS Potsdam: 2_Ortho_RGB/top_potsdam_R_C_RGB.tif with 5_Labels_all[_noBoundary]/top_potsdam_R_C_label*.tif.

    Args:
        source: Folder of the archive.
        labels: With or without the pixels next to boundaries; by default without, where those files are there.
    """
    files = list_files(source)
    eroded = [file for file in files if file.key.endswith('_label_noBoundary.tif')]
    labels = labels or ('no-boundary' if eroded else 'all')
    name = r'^(?!.*participants/).*top_potsdam_0?(?P<row>\d+)_0?(?P<column>\d+)_'
    found = _match(
        files, 'Potsdam', name + r'RGB\.tif$', name + ('label_noBoundary' if labels == 'no-boundary' else 'label') +
        r'\.tif$', '2_Ortho_RGB.zip and 5_Labels_all_noBoundary.zip or 5_Labels_all.zip, or what is in them')
    pairs = []
    for groups, image, mask in found:
        tile = f'{groups["row"]}_{groups["column"]}'
        pairs.append(Pair(tile, image, mask, 'val' if tile in POTSDAM_VAL else 'train', tile))
    # Two published label files hold other colours: 6_7 (252, 255, 0) for cars, 4_12 those of a lossy copy. With 127 a
    # channel counts as 0 or 255, whichever is nearer, and every file can be read.
    table = ClassTable.of_palette(*_classes_of(PotsdamDataset), ignored=(BLACK, ), tolerance=127)
    return pairs, Recipe('ISPRS Potsdam', table, layout='folders', tile_size=512, zero_is_ignored=True, about=dict(
        licence='see the page of the benchmark', homepage='isprs.org, 2D Semantic Labeling - Potsdam', labels=labels))


def isaid(source: str | Path) -> Converted:
    """iSAID with DOTA's images: {train,val,test}/images/P0000.png, …/Semantic_masks/P0000_instance_color_RGB.png."""
    part, name = r'(?:^|/)(?P<part>train|val|test)/(?:[^/]+/)*', r'(?:[^/]+/)*(?P<name>P\d+)'
    found = _match(
        list_files(source), 'iSAID', part + r'images/' + name + r'\.png$',
        part + r'Semantic_masks/' + name + r'_instance_color_RGB\.png$',
        'train/images/ and val/images/ (of DOTA-v1.0), train/Semantic_masks/ and val/Semantic_masks/, unpacked or not',
        unlabelled=lambda groups: groups['part'] == 'test')
    pairs = [Pair(groups['name'], image, mask, groups['part'], groups['name']) for groups, image, mask in found]
    table = ClassTable.of_palette(*_classes_of(iSAIDDataset))
    return pairs, Recipe('iSAID', table, layout='folders', tile_size=896, stride=512,
                         mask_suffix='_instance_color_RGB.png', about=dict(
                             licence='academic use only (DOTA and iSAID)', homepage='captain-whu.github.io/iSAID'))


def dubai(source: str | Path) -> Converted:
    """MBRSC Dubai: Tile N/images/image_part_00K.jpg, Tile N/masks/image_part_00K.png in colours; tile 2 validates."""
    where = r'(?:^|/)Tile (?P<tile>\d)/'
    found = _match(
        list_files(source), 'Dubai', where + r'images/image_part_(?P<name>\d+)\.jpg$',
        where + r'masks/image_part_(?P<name>\d+)\.png$', 'Tile 1/images/image_part_001.jpg, Tile 1/masks/… and so on')
    pairs = []
    for groups, image, mask in found:
        tile = f'tile{groups["tile"]}'
        pairs.append(Pair(f'{tile}_part_{groups["name"]}', image, mask, 'val' if tile == 'tile2' else 'train', tile))
    # (155, 155, 155) is 'unlabeled'; black is not documented and covers up to a sixth of some images
    table = ClassTable.of_palette(*_classes_of(DubaiDataset), ignored=((155, 155, 155), BLACK))
    return pairs, Recipe('MBRSC Dubai', table, about=dict(
        licence='CC0, by a copy of the set; read the page of the set', homepage='Humans in the Loop, on Kaggle'))


def fusu(source: str | Path, rule: SplitRule | None = None) -> Converted:
    """FUSU: [PART/]im1/N.png with im1_label/N.png or label1/N.png, and the same for im2; labels 0 (background), 1 … 17.

    Folders img_train/ and label_train/ are read too, as the release of TISynth has them: labels 0 … 16, 255; its test
    part is what configs validate on.

    Args:
        source: Folder of the archive.
        rule: How patches are divided where the archive is not; by default a fifth of the places validates. A place is
            the number before the underscore of a patch's name.
    """
    files = list_files(source)
    classes, palette = _classes_of(FUSUDataset)
    if any(re.search(r'(?:^|/)img_train/', file.key) for file in files):
        found = _match(files, 'FUSU', r'(?:^|/)img_(?P<part>train|val|test)/(?P<name>[^/]+)\.(?:jpg|png)$',
                       r'(?:^|/)label_(?P<part>train|val|test)/(?P<name>[^/]+)\.png$', 'img_train/ with label_train/')
        table = ClassTable.of_ids(classes, palette)
        named = {groups['name']: groups['part'] for groups, _, _ in found}
        pairs = [Pair(groups['name'], image, mask, 'train' if groups['part'] == 'train' else 'val', groups['name'])
                 for groups, image, mask in found]
        _refuse_rule('FUSU', named, rule)
    else:
        part = r'(?:^|/)(?:(?P<part>train|val|test)/)?'
        found = _match(files, 'FUSU', part + r'im(?P<date>[12])/(?P<name>[^/]+)\.(?:png|tif|jpg)$',
                       part + r'(?:im(?=[12]_label/)|label)(?P<date>[12])(?:_label)?/(?P<name>[^/]+)\.(?:png|tif)$',
                       'im1/6_255.png with im1_label/6_255.png and so on, in train/, val/, test/ or without')
        table = ClassTable.of_ids(classes, palette, first=1, ignored=(0, IGNORE_INDEX))
        pairs = _divided('FUSU', [(f'{groups["name"]}_t{groups["date"]}', groups.get('part'), image, mask)
                                  for groups, image, mask in found], rule, r'^(\d+(?=_\d)|.+(?=_t[12]$))')
    return pairs, Recipe('FUSU', table, about=dict(
        licence='none stated; the images are from Google Earth', homepage='github.com/yuanshuai0914/FUSU'))


def gid(source: str | Path, num_classes: Literal[5, 15, 24] = 24, images: Literal['rgb', '8bit', '16bit'] | None = None,
        rule: SplitRule | None = None, stretch: StretchRule | None = None) -> Converted:
    """GID: image_RGB/N.tif, with label_*classes/N_label.tif in colours or Annotation__index/N_24label.png, 0: no label.

    Args:
        source: Folder of the archive.
        num_classes: 5 and 15: GID; 24: Five-Billion-Pixels.
        images: Which images, where there are several kinds: 'rgb', '8bit' (near infrared, red, green, blue) or '16bit'
            (blue, green, red, near infrared).
        rule: How scenes are divided where the archive is not; by default a fifth of the scenes validates.
        stretch: How 16-bit images become 8-bit ones.
    """
    files = list_files(source)
    kinds = [kind for kind, (folder, _) in GID_IMAGES.items()
             if any(re.search(f'(?:^|/)(?:{folder})/', file.key) for file in files)]
    kind: str = images or next(iter(kinds), 'rgb')
    folder, bands = GID_IMAGES[kind]
    index = rf'_{num_classes}label\.png$'
    by_index = any(re.search(index, file.key) for file in files)
    colour = rf'label_{num_classes}classes/(?:[^/]+/)*(?P<name>[^/]+)_label\.tiff?$'
    part = r'/(?P<part>train|val|test)'
    found = _match(
        files, 'GID', rf'(?:^|/)(?:{folder}|img_dir{part})/(?P<name>[^/]+)\.tiff?$',
        rf'(?:^|/)(?:ann_dir{part}/)?(?P<name>[^/]+){index}' if by_index else colour,
        f'image_RGB/N.tif (or Image__8bit_NirRGB, Image_16bit_BGRNir) with Annotation__index/N_{num_classes}label.png '
        f'or label_{num_classes}classes/N_label.tif', unlabelled=lambda groups: groups.get('part') == 'test')
    classes = GID_CLASSES[num_classes]
    if by_index:
        table = ClassTable.of_ids(list(classes), list(classes.values()), first=1, ignored=(0, IGNORE_INDEX))
    else:
        table = ClassTable.of_palette(list(classes), list(classes.values()), ignored=(BLACK, ))
    pairs = _divided('GID', [(groups['name'], groups.get('part'), image, mask) for groups, image, mask in found], rule,
                     '^(.*)$')
    return pairs, Recipe(f'GID-{num_classes}', table, tile_size=512, bands=bands, stretch=stretch or StretchRule(),
                         references=True, about=dict(
        licence='see the pages of the sets', homepage='x-ytong.github.io (GID, Five-Billion-Pixels)', images=kind))


def own_folder(source: str | Path, table: ClassTable, *, title: str, images: str = 'images', masks: str = 'masks',
               mask_suffix: str = '', rule: SplitRule | None = None, skip_unlabelled: bool = False,
               **settings: Any) -> Converted:
    """A user's own folder: images and masks of the same names, in two folders.

    Args:
        source: The folder.
        table: The class table.
        title: The set's name.
        images: Folder of the images, below ``source``.
        masks: Folder of the masks.
        mask_suffix: What follows an image's name in that of its mask: '_label' for NAME.tif and NAME_label.png.
        rule: How images are divided; by default all of them train.
        skip_unlabelled: Leave images without a mask out; otherwise they are an error.
        settings: Of the :class:`Recipe`.
    """
    suffixes = '|'.join(re.escape(suffix) for suffix in IMAGE_SUFFIXES)
    image_folder, mask_folder = (re.escape(folder.strip('/') + '/') if folder.strip('/.') else ''
                                 for folder in (images, masks))
    end = re.escape(mask_suffix)
    found = _match(
        list_files(source), title,
        rf'^{image_folder}(?P<name>.+){f"(?<!{end})" if end else ""}(?i:{suffixes})$',  # both may be in one folder
        rf'^{mask_folder}(?P<name>.+){end}(?i:{suffixes})$',
        f'{images}/NAME.tif with {masks}/NAME{mask_suffix}.tif (or .png, …)', unlabelled=lambda groups: skip_unlabelled)
    rows = [(groups['name'].replace('/', '_'), None, image, mask) for groups, image, mask in found if mask is not None]
    return _divided(title, rows, rule or SplitRule(), None), Recipe(title, table, **settings)


def _match(files: Sequence[SourceFile], title: str, image_pattern: str, mask_pattern: str, expected: str, *,
           unlabelled: Callable[[Groups], bool] = lambda groups: False) -> Found:
    """Images with their masks: files whose paths match the patterns, with the same named groups.

    Raises:
        FileNotFoundError: If no file matches one of the patterns.
        ValueError: If images have no mask, or two files are the same image or mask.
    """
    matched: list[dict[tuple, tuple[Groups, SourceFile]]] = []
    for kind, pattern in (('image', re.compile(image_pattern)), ('mask', re.compile(mask_pattern))):
        found: dict[tuple, tuple[Groups, SourceFile]] = {}
        for file in files:
            match = pattern.search(file.key)
            if match:
                groups = {group: text for group, text in match.groupdict().items() if text is not None}
                key = tuple(sorted(groups.items()))
                if key in found:
                    raise ValueError(f'{title}: {found[key][1]} and {file} are the same {kind}; give the folder of one '
                                     'of them as `source`.')
                found[key] = groups, file
        if not found:
            listed = first_few([file.key for file in files], count=3) or 'none'
            raise FileNotFoundError(f'{title}: `source` holds no {kind}s where they are looked for: {expected}. Files '
                                    f'there: {listed}.')
        matched.append(found)
    images, masks = matched
    bare = [str(file) for key, (groups, file) in images.items() if key not in masks and not unlabelled(groups)]
    if bare:
        raise ValueError(f'{title}: {len(bare)} image(s) have no mask: {first_few(bare)}. Expected: {expected}. Add '
                         'the masks, or take the images out of the folder.')
    lone = [str(file) for key, (_, file) in masks.items() if key not in images]
    if lone:
        print_log(f'{title}: {len(lone)} mask(s) have no image and are left out: {first_few(lone)}', logger='current',
                  level=logging.WARNING)
    return [(groups, file, masks[key][1] if key in masks else None) for key, (groups, file) in images.items()]


def _divided(title: str, rows: Sequence[tuple[str, str | None, SourceFile, SourceFile | None]], rule: SplitRule | None,
             places: str | None) -> list[Pair]:
    """Pairs of (name, part in the archive, image, mask): divided as the archive is, or else by the rule."""
    names = [name for name, _, _, _ in rows]
    given = {name: part for name, part, _, _ in rows if part is not None}
    if given:
        if len(given) < len(rows):
            raise ValueError(f'{title}: {first_few(sorted(set(names) - set(given)))} lies in no folder train, val or '
                             'test, but other images do; move it.')
        _refuse_rule(title, given, rule)
        rule = SplitRule()
    elif rule is None:
        rule = SplitRule(val_share=0.2)
    if places is not None and rule.places == SplitRule.places:
        rule = replace(rule, places=places)
    parts = given or divide(names, rule)
    return [Pair(name, image, mask, parts[name], place_of(name, rule.places)) for name, _, image, mask in rows
            if name in parts]


def _refuse_rule(title: str, given: Mapping[str, str], rule: SplitRule | None) -> None:
    if rule is not None:
        raise ValueError(f'{title}: the archive is divided already, into {" and ".join(sorted(set(given.values())))}; '
                         'leave `places`, `val`, `test`, shares and lists out.')

