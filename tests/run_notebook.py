"""Runs a notebook's code cells in their order, without Jupyter: python tests/run_notebook.py NOTEBOOK OVERRIDES

As Jupyter does it, all cells share one namespace, and a cell's last expression is what it shows; a picture is written
to the current folder as ``cell-NUMBER.png``. OVERRIDES is a JSON object: values of variables that the cell with the tag
'parameters' sets.
"""
import ast
import json
import sys
from pathlib import Path
from typing import Any

PARAMETERS = 'parameters'


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text(encoding='utf-8'))['cells'] if cell['cell_type'] == 'code']


def run(path: Path, overrides: dict[str, Any]) -> None:
    namespace: dict[str, Any] = dict(__name__='__main__')
    for number, cell in enumerate(code_cells(path)):
        body = ast.parse(''.join(cell['source']), f'cell {number}')
        last = ast.Expression(body.body.pop().value) if isinstance(body.body[-1], ast.Expr) else None
        exec(compile(body, f'cell {number}', 'exec'), namespace)
        if PARAMETERS in cell['metadata'].get('tags', ()):
            unknown = overrides.keys() - namespace.keys()
            assert not unknown, f'the parameters have no {unknown}'
            namespace |= overrides
        shown = None if last is None else eval(compile(last, f'cell {number}', 'eval'), namespace)
        if hasattr(shown, '_repr_png_'):
            Path(f'cell-{number}.png').write_bytes(shown._repr_png_())


if __name__ == '__main__':
    run(Path(sys.argv[1]), json.loads(sys.argv[2]))
