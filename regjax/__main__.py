"""``python -m regjax``: the catalogue."""

import sys

from regjax.cli import main

sys.exit(main())
