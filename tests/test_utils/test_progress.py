"""The bar goes through what it is given and writes to stderr only."""
import pytest

from mmsynth.utils import progress_bar


def test_items_pass_through_and_the_last_line_tells_count_and_rate(capsys: pytest.CaptureFixture) -> None:
    assert list(progress_bar(range(3), unit='mask', title='generate')) == [0, 1, 2]
    out, err = capsys.readouterr()
    last = err.split('\r')[-1]
    assert out == '' and last.startswith('generate: 100%') and '3/3' in last and 'mask' in last


def test_a_file_gets_few_lines(capsys: pytest.CaptureFixture) -> None:
    """Not one per item: the output of a batch job is read by people."""
    list(progress_bar(range(1000)))
    assert capsys.readouterr().err.count('\r') <= 3


def test_a_resumed_run_starts_where_it_was(capsys: pytest.CaptureFixture) -> None:
    with progress_bar(total=10, initial=6) as bar:
        bar.update(2)
        assert bar.n == 8
    assert '8/10' in capsys.readouterr().err


def test_items_without_length_take_a_total(capsys: pytest.CaptureFixture) -> None:
    assert len(list(progress_bar((i for i in range(4)), total=4))) == 4
    assert '4/4' in capsys.readouterr().err


def test_a_bar_that_waits_for_a_long_item_tells_the_time(capsys: pytest.CaptureFixture) -> None:
    with progress_bar(total=9) as bar:
        bar.mininterval = 0
        bar.update(3)
        capsys.readouterr()
        bar.update(0)
        assert '3/9' in capsys.readouterr().err
