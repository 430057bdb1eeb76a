"""``python -m facetransport``: see ``cli``."""

from __future__ import annotations

import sys

from facetransport.companion.cli import main

sys.exit(main())
