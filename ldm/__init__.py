"""Text to image by latent diffusion. This file imports no other of the package, so that a stage depends only on what it
names. Stages and commands import it before torch.
"""

import os

# MKL, which multiplies float32 matrices for torch on x86, chooses its code by the kind of CPU, and with it the order of
# sums. This code is the same on every kind. The trainings multiply in bf16, which is not MKL's; what does not (text
# embeddings, features) takes twice the time. MKL reads it once. A user's own setting wins.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")
