"""Text to image by latent diffusion. This file imports no other of the package, so that a stage depends only on what it
names.

Stages and commands import it before torch: OpenMP reads its settings once, when torch is loaded, and MKL at its first
product.
"""

import os

# A thread that waits for work sleeps. One that spins takes a core from other processes and from its own siblings:
# beside one busy process a training of two threads fell to a tenth of its speed. A user's own setting wins.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# MKL, which multiplies float32 matrices for torch on x86, chooses its code by the kind of CPU, and with it the order of
# sums. This code is the same on every kind. The trainings multiply in bf16, which is not MKL's; what does not (text
# embeddings, features) takes twice the time. A user's own setting wins.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")
