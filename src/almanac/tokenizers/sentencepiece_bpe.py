"""SentencePiece BPE: scores of pieces and the merge list that says the same.

SentencePiece (Kudo & Richardson, 2018, arXiv 1808.06226) joins, again and again, the neighbouring pair whose union is
the piece with the highest score. A merge list (Sennrich et al., 2016, arXiv 1508.07909) states pairs in order. So
every way to cut a piece into two pieces becomes a merge, ordered by the score of the whole.

Deviation: of two ways to build one piece, SentencePiece takes the leftmost in the text, a merge list the one listed
first. They differ only where both overlap in the text; equal scores of different pieces likewise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def merges_from_scores(scores: Mapping[str, float], order: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merge list for `scores` (piece -> score); `order` (piece -> id) breaks ties."""
    found: list[tuple[float, int, int, int, str, str]] = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                found.append((-score, order[piece], order[left], order[right], left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def scores_from_merges(merges: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Piece -> minus the rank of the first merge that builds it, so that earlier means higher."""
    scores: dict[str, float] = {}
    for rank, (left, right) in enumerate(merges):
        scores.setdefault(left + right, -float(rank))
    return scores
