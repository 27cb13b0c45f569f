#!/usr/bin/env bash
# Super-resolution ×4 of Set5 and Set14 beside bicubic and published figures.
# Flags: --quick, --dry-run, --workers N, --seeds 1 2 3, and any of super_resolution.py's; run it
# again to go on where it was.
here=$(unset CDPATH; cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m dip_recon sweep "$here/configs/sr_table.yaml" "$@"
