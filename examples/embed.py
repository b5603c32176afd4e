"""Texts as vectors of unit length, so that a dot product is a cosine; here, a search in four lines.

SmolLM2 was made to write and not to embed, so its vectors are rough; a model made for it does better.
"""

import tallow

model = tallow.Model("smollm2")
texts = [
    "The cat sleeps on the sofa.",
    "Stocks fell sharply on Monday.",
    "A recipe for onion soup.",
    "The rocket reached orbit.",
]
similarity = model.embed(texts) @ model.embed(["The kitten naps on the couch."])[0]
for value, text in sorted(zip(similarity, texts, strict=True), reverse=True):
    print(f"{value:.3f}  {text}")
