"""Real lines for the tests of tokenizers."""

from __future__ import annotations

import json
import lzma
from pathlib import Path


def real_lines(data_dir: Path) -> list[str]:
    """5,000 film reviews and 5,000 lines of Wikipedia."""
    with lzma.open(data_dir / "imdb" / "test_5k.jsonl.xz", "rt", encoding="utf-8") as lines:
        reviews = [json.loads(line)["text"] for line in lines]
    articles = [line for part in ("valid", "test") for line in
                (data_dir / "wikitext2" / f"{part}.txt").read_text(encoding="utf-8").splitlines(keepends=True)]
    return reviews + [line for line in articles if line.strip()][:5000]
