"""``python mindnlp_reader.py NAME FILE``: what MindNLP's loader reads, as lines of JSON.

It is run by its path, in whatever environment has MindNLP, and needs nothing of this library there. MindNLP 0.2 and
later give a dictionary of parts, or a single one; 0.1 a tuple of train and test.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from mindnlp.dataset import load_dataset


def main(name: str, target: str) -> None:
    """Write every row of every part, with the part's name under ``part``."""
    loaded = load_dataset(name, shuffle=False)
    if isinstance(loaded, tuple | list):
        loaded = dict(zip(("train", "test"), loaded, strict=False))
    parts = loaded if isinstance(loaded, dict) else {"train": loaded}
    with open(target, "w", encoding="utf-8") as file:
        for part, rows in parts.items():
            for row in rows.create_dict_iterator(num_epochs=1, output_numpy=True):
                plain = {column: _plain(value.tolist()) for column, value in row.items()}
                file.write(json.dumps({**plain, "part": str(part)}) + "\n")


def _plain(value: Any) -> Any:
    return value.decode("utf-8") if isinstance(value, bytes) else value


if __name__ == "__main__":
    main(*sys.argv[1:])
