#!/usr/bin/env bash
# The thesis's comparison: DIP, DIP with method-noise stopping and PG-DIP; PSNR and time, two runs
# on the same noisy picture and their mean.
# Flags: --quick, --dry-run, --workers N, --seeds 1 2 3, and any of denoising.py's; run it again to
# go on where it was.
here=$(unset CDPATH; cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m dip_recon sweep "$here/configs/pgdip.yaml" "$@"
