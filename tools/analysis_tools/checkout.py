"""The way from these tools to the package."""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def find_package() -> None:
    """Let a checkout that is not installed be imported."""
    if (ROOT / 'mmsynth').is_dir() and str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
