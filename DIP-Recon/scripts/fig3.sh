#!/usr/bin/env bash
# Fig. 3: a decoder with bilinear, transposed and no upsampling. (a) as it is; (b) with
# --model_type ConvDecoder.
# Flags: --quick, --dry-run, --workers N, --seeds 1 2 3, and any of denoising.py's; run it again to
# go on where it was.
here=$(unset CDPATH; cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m dip_recon sweep "$here/configs/fig3.yaml" "$@"
