"""Writes first_cell.py into the notebooks beside it, as the first cell of code of each.

The address of the repository is given in first_cell.py alone; run this after a change of it.

Example:
  python launch/colab/share_first_cell.py
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CELL = HERE / "first_cell.py"


def main() -> int:
    for file in sorted(HERE.glob("*.ipynb")):
        notebook = json.loads(file.read_text("utf-8"))
        first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
        first["source"] = CELL.read_text("utf-8").removesuffix("\n").splitlines(keepends=True)
        # As Jupyter writes it.
        file.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
