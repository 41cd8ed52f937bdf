"""Runs the Triton kernels in Triton's interpreter: ``python interpret_mask_paste.py cases.pt results.pt``.

A program of its own, because the interpreter has to be chosen before triton is imported, and then nothing compiles.
"""

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch

from lift_det.layers import mask_to_rle, paste_masks

if __name__ == "__main__":
    cases, results = sys.argv[1:]
    torch.save(
        [(paste_masks(*case, "triton"), mask_to_rle(*case, "triton")) for case in torch.load(cases)],
        results,
    )
