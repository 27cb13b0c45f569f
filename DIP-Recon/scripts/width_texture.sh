#!/usr/bin/env bash
# Width × texture: 32, 64 and 128 channels on the classes of Texture-DIP.
# Flags: --quick, --dry-run, --workers N, --seeds 1 2 3, and any of denoising.py's; run it again to
# go on where it was.
here=$(unset CDPATH; cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m dip_recon sweep "$here/configs/width_texture.yaml" "$@"
