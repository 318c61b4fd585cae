import os

import torch

# Triton decides between compiling and interpreting when it is imported, and torch imports it on
# many occasions: so before anything else, and for all tests.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
