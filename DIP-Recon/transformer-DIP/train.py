"""transformer-DIP: denoising with an untrained Swin U-Net; takes the published flags."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package beside this folder

from dip_recon.experiment import main
from dip_recon.options import TransformerOptions

if __name__ == "__main__":
    sys.exit(main(TransformerOptions))
