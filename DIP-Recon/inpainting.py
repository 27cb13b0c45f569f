"""Inpainting with an untrained network: flags in, run folders out."""

import sys

from dip_recon.experiment import main
from dip_recon.options import InpaintingOptions

if __name__ == "__main__":
    sys.exit(main(InpaintingOptions))
