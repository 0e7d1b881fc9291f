"""Embeddings in closed form: what a few seconds of counting know, before the first training step.

Tokens that keep the same company get similar vectors. The matrix of positive pointwise mutual information, factorised,
is what skip-gram training converges to (Levy and Goldberg 2014, *Neural word embedding as implicit matrix
factorization*); a short pretraining that starts from it need not learn it.
"""

from typing import Any

import numpy as np
import torch

from course_lib.errors import CourseError

WINDOW = 5  # tokens to either side
SMOOTHING = 0.75  # of the context's frequency, so that rare contexts do not dominate (Levy et al. 2015)
MAX_TOKENS = 8_000_000  # more text changes the vectors little


def counts(tokens: np.ndarray, vocab: int, bos: int, window: int = WINDOW) -> Any:
    """How often two tokens stand near each other, (vocab, vocab) sparse, symmetric; at distance d a pair counts 1/d.

    Pairs do not reach over a BOS, which starts a document.
    """
    from scipy.sparse import csr_matrix

    stream = np.asarray(tokens[:MAX_TOKENS], dtype=np.int64)
    document = np.cumsum(stream == bos)
    found = csr_matrix((vocab, vocab), dtype=np.float32)
    for distance in range(1, window + 1):
        left, right = stream[:-distance], stream[distance:]
        together = (document[:-distance] == document[distance:]) & (left != bos)
        pairs, times = np.unique(left[together] * vocab + right[together], return_counts=True)
        found += csr_matrix(((times / distance).astype(np.float32), (pairs // vocab, pairs % vocab)), (vocab, vocab))
    return found + found.T


def embeddings(
    tokens: np.ndarray, vocab: int, size: int, bos: int, seed: int = 0, window: int = WINDOW
) -> torch.Tensor:
    """A vector for each token, (vocab, size) float32, standard deviation 1 over all entries; never seen ones are zero.

    UΣ^½ of PPMI ≈ UΣVᵀ, where PPMI[i, j] = max(0, log p(i, j) / (p(i) p_c(j))).
    """
    from sklearn.utils.extmath import randomized_svd

    if size >= vocab:
        raise CourseError(f"Co-occurrence gives at most {vocab - 1} dimensions for {vocab} tokens; asked for {size}.")
    matrix = counts(tokens, vocab, bos, window).tocoo()
    rows = np.asarray(matrix.sum(1)).ravel()
    context = rows**SMOOTHING / (rows**SMOOTHING).sum()
    matrix.data = np.maximum(np.log(matrix.data / (rows[matrix.row] * context[matrix.col])), 0)
    u, s, _ = randomized_svd(matrix.tocsr(), size, n_iter=4, random_state=seed)
    vectors = torch.from_numpy(u * np.sqrt(s)).float()
    return vectors / vectors.std()
