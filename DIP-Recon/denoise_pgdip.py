"""PG-DIP: a network that grows while it is fitted; static or adaptive method-noise stopping."""

import sys

from dip_recon.experiment import main
from dip_recon.options import GrowingOptions

if __name__ == "__main__":
    sys.exit(main(GrowingOptions))
