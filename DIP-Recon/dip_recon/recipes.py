"""The demonstrations of Deep Image Prior as options by name: what ``--recipe`` stands for.

Settings of the notebooks of Ulyanov et al., "Deep Image Prior" (CVPR 2018); the pictures are of the
data set dip-demos. All but snail show the last output, not an average. A network's own recipe of
the fit stands with the network (``models.register``).
"""

_SKIP = {
    "model_type": "skip", "num_scales": 5, "dim": [128], "skip_dim": [0], "lr": 0.01,
    "filter_size_down": 3, "filter_size_up": 3, "pad": "reflection", "act_func": "LeakyReLU",
}  # fmt: skip
_INPAINTING = {**_SKIP, "mask_type": "file", "upsample_mode": "nearest", "exp_weight": 0.0}
INPAINTING = {
    "kate": {
        **_INPAINTING, "folder_path": "dip-demos/inpainting_kate", "skip_dim": [128],
        "input_dim": 32, "num_iters": 6001, "reg_noise_std": 0.03,
    },
    "vase": {
        **_INPAINTING, "folder_path": "dip-demos/vase",
        "noise_method": "meshgrid", "num_iters": 5001, "reg_noise_std": 0.03,
    },
    # its noise on the weights was never applied to them
    "library": {
        **_INPAINTING, "folder_path": "dip-demos/library", "num_scales": 6,
        "dim": [16, 32, 64, 128, 128, 128], "filter_size_down": 5, "need1x1": False,
        "input_dim": 1, "num_iters": 3001, "reg_noise_std": 0.0,
    },
}  # fmt: skip
DENOISING = {
    "snail": {
        **_SKIP, "task": "real_denoising", "folder_path": "dip-demos/snail",
        "dim": [8, 16, 32, 64, 128], "skip_dim": [0, 0, 0, 4, 4], "upsample_mode": "bilinear",
        "input_dim": 3, "num_iters": 2400, "reg_noise_std": 1 / 30, "exp_weight": 0.99,
    },
    # bilinear throughout, where the notebook has nearest in the two outermost scales
    "flash": {
        **_SKIP, "task": "real_denoising", "folder_path": "dip-demos/cave01_01_noflash",
        "noise_method": "image", "input_image_name": "dip-demos/cave01_00_flash",
        "skip_dim": [4], "upsample_mode": "bilinear",
        "lr": 0.1, "num_iters": 601, "reg_noise_std": 0.0, "exp_weight": 0.0,
    },
}  # fmt: skip
OF_PROGRAMS = {"inpainting": INPAINTING, "denoising": DENOISING}
