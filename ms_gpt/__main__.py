"""``python -m ms_gpt``."""

import sys

from ms_gpt.cli import main

if __name__ == "__main__":
    sys.exit(main())
