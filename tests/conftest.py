"""What every test process needs to know before it starts."""

import os

import torch

# The processes share the cores.
torch.set_num_threads(1)

# Without a GPU, Triton's kernels run in its interpreter; it must know before it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
