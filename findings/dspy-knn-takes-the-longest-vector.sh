#!/usr/bin/env bash
# dspy.KNN(k, trainset, vectorizer), and KNNFewShot on top of it, choose the training examples nearest to the input. Many embedding
# models give vectors that are not of length 1.
#
# Usual guess: nearest is by cosine or by distance; dspy.Embeddings, the retriever beside it, normalizes. The example that
#   equals the input is its nearest.
# Seen (dspy 3.4.1): it is the highest product of the vectors as they come. A vector three times as long and 45 degrees away is
#   "nearer" than the input itself; a few long vectors become everybody's neighbours. An embedder that normalizes is right.
#
# Output seen:
#   dspy.KNN         far
#   dspy.Embeddings  same
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "dspy==3.4.1" "numpy==2.4.6"
cat > "$work/run.py" <<'PY'
import dspy
import numpy as np

VECTORS = {"same": [1.0, 0.0], "far": [3.0, 3.0]}


def embed(texts):
    return np.array([VECTORS[text.removeprefix("text: ")] for text in texts], dtype=np.float32)


embedder = dspy.Embedder(embed, caching=False)
trainset = [dspy.Example(text=text).with_inputs("text") for text in VECTORS]
knn = dspy.KNN(1, trainset, embedder)(text="same")[0].text
retrieved = dspy.Embeddings(list(VECTORS), embedder, k=1)("same").passages[0]
print("dspy.KNN        ", knn)
print("dspy.Embeddings ", retrieved)
raise SystemExit((knn, retrieved) != ("far", "same"))
PY
DSPY_CACHEDIR="$work/cache" "$work/venv/bin/python" "$work/run.py"
