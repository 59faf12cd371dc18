"""``python -m regjax``: the catalogue."""

import sys

from regjax.catalog import main

sys.exit(main())
