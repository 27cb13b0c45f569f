"""DIP with static or adaptive method-noise stopping."""

import sys

from dip_recon.experiment import main
from dip_recon.options import MethodNoiseOptions

if __name__ == "__main__":
    sys.exit(main(MethodNoiseOptions))
