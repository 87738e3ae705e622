"""Handwritten digits: 1,797 images of 8×8 pixels with sixteen shades of grey, by people whom the original's training set does not hold.

The test set of E. Alpaydin and C. Kaynak's Optical Recognition of Handwritten Digits (1998, UCI Machine Learning Repository, CC-BY 4.0) as
scikit-learn carries it, kept here as digits.npz. ``python -m rundoku.data.digits``, with scikit-learn installed, makes the file anew.
"""

from pathlib import Path

import torch

from rundoku.data.source import Source

SOURCE = Source(
    title="Optical Recognition of Handwritten Digits (test set)",
    package="scikit-learn",
    version="1.9.1",
    licence="CC-BY-4.0",
    url="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
)
FILE = Path(__file__).with_name("digits.npz")


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images [1797, 64] in float32 from 0 to 1, rows of pixels one after the other, and their labels [1797]."""
    import numpy as np

    with np.load(FILE, allow_pickle=False) as stored:
        return torch.from_numpy(stored["images"]).float() / 16, torch.from_numpy(stored["labels"]).long()


def make(path: Path = FILE) -> None:
    """Write digits.npz from scikit-learn's copy."""
    import numpy as np
    from sklearn.datasets import load_digits

    found = load_digits()
    np.savez_compressed(path, images=found.data.astype(np.uint8), labels=found.target.astype(np.uint8))


if __name__ == "__main__":
    make()
