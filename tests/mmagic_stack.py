"""mmagic for the tests, where it imports; elsewhere they are skipped with the reason."""
from importlib.util import find_spec

import pytest


def need_mmagic() -> None:
    """Import mmagic, or skip the test."""
    if find_spec('mmagic') is None:
        pytest.skip('mmagic is not installed: tools/dev/test_mmagic.sh')
    from mmsynth.models.mmagic_host import import_mmagic
    try:
        import_mmagic()
    except ImportError as error:
        pytest.skip(str(error))
