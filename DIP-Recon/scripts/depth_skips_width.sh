#!/usr/bin/env bash
# Depth × skips × width of DIP_2_scaled, beside DIP_orig.
# Flags: --quick, --dry-run, --workers N, --seeds 1 2 3, and any of denoising.py's; run it again to
# go on where it was.
here=$(unset CDPATH; cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m dip_recon sweep "$here/configs/depth_skips_width.yaml" "$@"
