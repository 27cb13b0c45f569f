#!/usr/bin/env bash
# transformer-DIP: a Swin U-Net that goes up by an unlearnt upsampler, and one that learns to; the
# curves, where they peak and where they end.
# Flags: --quick, --dry-run, --workers N, --seeds 1 2 3, and any of denoising.py's; run it again to
# go on where it was.
here=$(unset CDPATH; cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m dip_recon sweep "$here/configs/transformer.yaml" "$@"
