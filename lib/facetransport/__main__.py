"""``python -m facetransport``: see ``cli``."""

from __future__ import annotations

import sys

from facetransport.cli import main

sys.exit(main())
