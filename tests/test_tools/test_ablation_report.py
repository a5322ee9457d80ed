"""Tables of an ablation: closed forms on made-up measurements."""
import pytest
from ablation.report import class_table, describe, draw_plot, group, main_table, to_markdown
from ablation.store import Measurement


def made_up(rule: str, seed: int, judge: float, steps: int | None = None, **changes: object) -> Measurement:
    values = dict(images=4, real_images=5, judge_miou=judge, critic_miou=None, frechet=2.0, class_frechet=dict(a=None),
                  class_images=dict(a=4), class_real_images=dict(a=5), relative_change=None, seconds_per_image=0.5)
    return Measurement(rule, steps, seed, **(values | changes))


def test_tables_hold_mean_and_spread_and_differences_within_a_seed() -> None:
    grouped = group([made_up('none', 0, 20.0), made_up('none', 1, 40.0),
                     made_up('relative', 0, 21.0, 4, relative_change=0.1, class_frechet=dict(a=3.0)),
                     made_up('relative', 1, 43.0, 4, relative_change=0.3)])
    columns, (none, relative) = main_table(grouped)
    assert columns[:4] == ['rule', 'steps', 'judge mIoU (%)', 'judge mIoU - none']
    assert none[:5] == ['none', '', '30.00 ± 14.14', '+0.00 ± 0.00', '–']
    assert relative[:4] == ['relative', '4', '32.00 ± 15.56', '+2.00 ± 1.41']
    assert relative[6] == '0.2 ± 0.14' and none[6] == '–'
    assert class_table(grouped) == (['rule', 'steps', 'a'], [['none', '', '–'], ['relative', '4', '3']])


def test_notes_name_the_classes_that_are_too_rare() -> None:
    """Once a seed, not for every variant: all have the same masks."""
    notes = describe([made_up('none', 0, 20.0), made_up('relative', 0, 20.0, 4),
                      made_up('none', 1, 20.0, class_frechet=dict(a=1.0))])
    assert notes[-1] == ('Seed 0: no Fréchet distance for classes in fewer than 10 images: a (4 synthetic, 5 real).')
    assert any('4 synthetic and 5 real images per seed; seeds 0, 1' in note for note in notes)


def test_markdown() -> None:
    assert to_markdown([('Rules', ['rule', 'x'], [['none', '1']])], ['a note']) == (
        '## Rules\n\n| rule | x |\n| --- | --- |\n| none | 1 |\n\n- a note\n')


def test_every_rule_starts_from_none_at_no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    monkeypatch.setattr('ablation.report.plot_ablation',
                        lambda panels, steps: drawn.update(panels=panels, steps=steps))
    draw_plot(group([made_up('none', 0, 20.0), made_up('relative', 0, 24.0, 'all', relative_change=0.1),
                     made_up('relative', 0, 21.0, 4, relative_change=0.1), made_up('best-of-n', 0, 22.0)]))
    panels = {panel.label: panel for panel in drawn['panels']}
    assert drawn['steps'] == ['0', '4', 'all'] and 'critic mIoU (%)' not in panels  # of which there are no values
    judge = panels['judge mIoU (%)']
    assert judge.curves == dict(relative={'0': [20.0], '4': [21.0], 'all': [24.0]})
    assert judge.levels == {'none': [20.0], 'best of 4': [22.0]}
    assert panels['judge mIoU - none'].curves['relative'] == {'0': [0.0], '4': [1.0], 'all': [4.0]}
    assert panels['‖dv‖ / ‖v‖'].curves['relative'] == {'4': [0.1], 'all': [0.1]}
