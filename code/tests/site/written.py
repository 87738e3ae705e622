"""A repository with an inventory and one written note, for the tests of what reads and checks them."""

import textwrap
from pathlib import Path

INVENTORY = """
themes:
  attention: {name: {en: A, ja: あ, zh: 甲}, description: {en: a, ja: い, zh: 乙}}
  depth: {name: {en: D, ja: で, zh: 丁}, description: {en: d, ja: で, zh: 丁}}
paths:
  A: {name: {en: A, ja: あ, zh: 甲}, description: {en: a, ja: い, zh: 乙}}
  E: {name: {en: E, ja: え, zh: 戊}, description: {en: e, ja: え, zh: 戊}}
papers:
  - {slug: qkv, kind: concept, theme: attention, paths: [A], kernel: false, title: Query, title_ja: クエリ, title_zh: 查询}
  - {slug: small-net, title: 'Small Nets: A Study', year: 2021, arxiv: '2101.00001', theme: depth, paths: [A, E], kernel: true}
  - {slug: later, title: Later, year: 2024, theme: depth, paths: [E], kernel: false}
"""
PAPER = """
kind: paper
title: "Small nets — a study"
authors: [Ada Example, Bo Sample]
year: 2021
venue: Journal of Tests
arxiv: "2101.00001"
themes: [depth, attention]
tags: [deep]
paths: [E, A]
tagline: {en: Small is enough, ja: 小さくてよい, zh: 小就够了}
written: 2026-01-31
revised: 2026-02-01
pick: true
facts:
  size: {value: 4.7, format: ".1f", unit: M, where: Table 4}
  gain: {value: 37, unit: "%", where: §3.2}
claims:
  smaller: {fact: size, says: {en: It is small., ja: 小さい。, zh: 它很小。}}
next: [later]
bibtex: |
  @article{a}
"""
TAGS = "deep: {en: deep, ja: 深い, zh: 深}\n"
LABELS = """
labels:
  Loss: {ja: 損失, zh: 损失}
  'layer {}': {ja: '第{}層', zh: '第{}层'}
  '{} of {}': {ja: '{1}のうち{0}', zh: '{1}中的{0}'}
keep: [LoRA]
"""
GLOSSARY = """
transformer:
  {en: Transformer, ja: Transformer, zh: Transformer, never: {ja: [変圧器], zh: [变压器]}, means: {en: a net, ja: 網, zh: 网}}
"""


class Site:
    """A repository's root with one written note, whose files a test may replace."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("notes/inventory.yml", INVENTORY)
        self.write("notes/tags.yml", TAGS)
        self.write("notes/labels.yml", LABELS)
        self.write("notes/glossary.yml", GLOSSARY)
        self.write("notes/small-net/paper.yml", PAPER)

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    def read(self, name: str) -> str:
        return (self.root / name).read_text(encoding="utf-8")

    def edit(self, name: str, old: str, new: str) -> None:
        text = self.read(name)
        assert text.count(old) >= 1, f"{old!r} is not in {name}"
        self.write(name, text.replace(old, new, 1))
