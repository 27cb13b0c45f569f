#!/usr/bin/env bash
# Half of the pixels missing in 11 grey pictures: DIP and the reproduction's network, beside published
# figures.
# Flags: --quick, --dry-run, --workers N, --seeds 1 2 3, and any of inpainting.py's; run it again to
# go on where it was.
here=$(unset CDPATH; cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m dip_recon sweep "$here/configs/inpainting_table.yaml" "$@"
