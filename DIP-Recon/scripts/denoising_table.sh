#!/usr/bin/env bash
# Denoising of Set9 at sigma 25 and 50 beside NLM, CBM3D and published figures.
# Flags: --quick, --dry-run, --workers N, --seeds 1 2 3, and any of denoising.py's; run it again to
# go on where it was.
here=$(unset CDPATH; cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m dip_recon sweep "$here/configs/denoising_table.yaml" "$@"
