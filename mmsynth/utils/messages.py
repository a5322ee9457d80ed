"""Lists in messages."""
from collections.abc import Iterable


def first_few(items: Iterable[object], separator: str = ', ', count: int = 5) -> str:
    """The first items, and how many more there are."""
    texts = [str(item) for item in items]
    more = f'{separator}… ({len(texts) - count} more)' if len(texts) > count else ''
    return separator.join(texts[:count]) + more
