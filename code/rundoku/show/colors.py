"""The colours of figures: stand-ins while matplotlib draws, the theme's CSS variables once the SVG stands in a page."""

INK, FAINT, PAPER = "#010101", "#010102", "#010103"
SERIES = tuple(f"#0102{i:02x}" for i in range(1, 7))
RAMP = tuple(f"#0103{i:02x}" for i in range(10))  # from nothing to most

CSS = (
    {INK: "currentColor", FAINT: "var(--faint)", PAPER: "var(--paper)"}
    | {color: f"var(--series-{i})" for i, color in enumerate(SERIES, 1)}
    | {color: f"var(--ramp-{i})" for i, color in enumerate(RAMP)}
)

# What a notebook or a shell shows, where no theme stands behind the figure.
PRINTED = (
    {INK: "#222222", FAINT: "#dddddd", PAPER: "#ffffff"}
    | dict(zip(SERIES, ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#56b4e9"), strict=True))
    | dict(
        zip(
            RAMP,
            ("#f7f7f7", "#e3eef5", "#c9e0ee", "#a6cde3", "#7fb6d5", "#5a9cc6", "#3c82b3", "#25699c", "#145082", "#083763"),
            strict=True,
        )
    )
)
