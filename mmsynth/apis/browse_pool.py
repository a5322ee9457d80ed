"""The browser of a pool: a page on this machine to look at samples and choose among them by hand."""
import webbrowser
from pathlib import Path

from mmsynth.visualization.browser import PoolServer


def browse_pool(root: str | Path, *, port: int = 0, open_page: bool = True) -> None:
    """Serve the page of a pool until it is interrupted (Ctrl-C).

    Args:
        root: The pool's folder.
        port: Of this machine; 0 takes a free one.
        open_page: Whether to open the page in the desktop's browser.

    Raises:
        ValueError: If ``root`` is no pool, or the port is out of range.
        OSError: If the port is taken.
    """
    with PoolServer(root, port) as server:
        print(f'{len(server.view.pool):,} samples of {root}: {server.url}  (Ctrl-C ends it)', flush=True)
        if open_page:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
