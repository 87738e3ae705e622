"""What every test shares."""

import torch

torch.set_num_threads(1)  # the same sums everywhere, and room for the other worker
