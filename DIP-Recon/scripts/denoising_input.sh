#!/usr/bin/env bash
# The input study: noise, or a foreign noisy picture, as the network input.
# Flags: --quick, --dry-run, --workers N, --seeds 1 2 3, and any of denoising.py's; run it again to
# go on where it was.
here=$(unset CDPATH; cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m dip_recon sweep "$here/configs/denoising_input.yaml" "$@"
