"""The baseline: DIP, two runs on the same noisy picture, and the PSNR of each and of their mean."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package beside this folder

from dip_recon.experiment import main
from dip_recon.options import BaselineOptions

if __name__ == "__main__":
    sys.exit(main(BaselineOptions))
