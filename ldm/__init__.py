"""Text to image by latent diffusion. This file imports no other of the package, so that a stage depends only on what it
names.

Stages and commands import it before torch: OpenMP reads its settings once, when torch is loaded.
"""

import os

# A thread that waits for work sleeps. One that spins takes a core from other processes and from its own siblings:
# beside one busy process a training of two threads fell to a tenth of its speed. A user's own setting wins.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
