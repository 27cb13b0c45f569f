"""``python -m dip_recon`` is the command ``dip-recon``."""

import sys

from .cli import main

sys.exit(main())
