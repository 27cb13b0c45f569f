"""``python -m dip_recon`` is the command ``dip-recon``."""

import sys

from .cli import main

if __name__ == "__main__":  # the workers of a sweep import this file as well
    sys.exit(main())
