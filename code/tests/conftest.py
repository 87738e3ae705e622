"""What every test shares."""

import torch
from hypothesis import settings

# A build must not fail by chance; `pytest --hypothesis-profile explore` looks at other examples every time.
settings.register_profile("build", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile("build")
torch.set_num_threads(1)  # the same sums everywhere, and room for the other worker
