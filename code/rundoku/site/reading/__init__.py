"""The code of the page *Reading a Triton kernel*: `note.py` holds the sections that docs/reading-a-kernel.*.md embed."""
