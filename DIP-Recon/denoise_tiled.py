"""PG-DIP on overlapping tiles, each with its own stop: pictures of any size."""

import sys

from dip_recon.experiment import main
from dip_recon.options import TiledOptions

if __name__ == "__main__":
    sys.exit(main(TiledOptions))
