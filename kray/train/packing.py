"""Splits the rows of a step into the micro-batches of each rank, packed, or padded for models that cannot be packed.

Guarantees
- Every row is in exactly one micro-batch of exactly one rank, whole. With context parallelism the ranks that compute together
  count as one, and each of them computes a part of the micro-batch's tokens; targets are found before they are divided.
- Every rank gets the same number of micro-batches, because FSDP's collectives must match; missing ones are empty.
- In a packed micro-batch a prompt's tokens occur once for all its rollouts there, and no token is padding. The last token
  of a response predicts nothing and is left out.
- Targets are the sampled tokens only: what an environment wrote is context, as the prompt is.

Shape suffixes: B sequences of T tokens (packed: B = 1), K places whose hidden state predicts something, N targets.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kray.train.context_parallel import ContextRanks, TargetParts
from kray.train.packed_layout import PackedLayout, length_buckets, packed_layout
from kray.train.training_rows import TrainingRows

# A group is dealt to the ranks in pieces of at most 1 / (ranks * PIECES) of all tokens: enough pieces to balance the ranks,
# few enough that most rollouts share their prompt's computation.
PIECES = 4


@dataclass(slots=True)
class MicroBatch:
    """One micro-batch, of which this rank computes all or, after `own_part`, a part of the tokens.

    Attributes:
        input_ids: (B, T) int64; of a part, as all that is said to be of one, those of its T tokens.
        positions: (B, T) int64 position of each token in its own sequence; of a part.
        layout: Which tokens see which; None for a padded micro-batch.
        keep: (K,) int64 places in the flattened B * T; of a part.
        source: (N,) int64, sorted; the index within K that predicts target n; of a part.
        targets: (N,) int64 tokens; of a part.
        rollout: (N,) int64 row of the micro-batch.
        order: (N,) int64 index of the target among the rows' sampled tokens, row after row.
        logprobs: (N,) float32 log-probabilities recorded by the engine, nats.
        advantages: (N,) float32.
        weights: (N,) float32 loss weights.
        filled: Number of the B * T places that hold a token.
        rows: Number of rows.
        parts: How targets are divided over ranks; None where each rank computes all of them.
    """

    input_ids: Tensor
    positions: Tensor
    layout: PackedLayout | None
    keep: Tensor
    source: Tensor
    targets: Tensor
    rollout: Tensor
    order: Tensor
    logprobs: Tensor
    advantages: Tensor
    weights: Tensor
    filled: int
    rows: int
    parts: TargetParts | None = None

    def to(self, device: torch.device) -> MicroBatch:
        """Return the micro-batch on a device."""
        if device.type == "cpu":
            return self
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in self.__slots__
            if isinstance(getattr(self, name), Tensor)
        }
        layout = None if self.layout is None else self.layout.to(device)
        return MicroBatch(**moved, layout=layout, filled=self.filled, rows=self.rows, parts=self.parts)

    @property
    def inputs(self) -> dict[str, Any]:
        """Keyword arguments of the model.

        A padded micro-batch needs neither mask nor positions: causal attention hides padding on the right from every
        token that counts.
        """
        if self.layout is None:
            return {"input_ids": self.input_ids}
        # transformers passes any four-dimensional mask on unchanged; the packed attention reads `layout` instead.
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.input_ids.device)
        return {
            "input_ids": self.input_ids,
            "position_ids": self.positions,
            "attention_mask": mask,
            "layout": self.layout,
        }

    @property
    def computed_tokens(self) -> int:
        """Places that the layers compute, padding included, on all ranks that compute the micro-batch."""
        return self.input_ids.numel() * (1 if self.parts is None else self.parts.ranks.size)

    @property
    def key_counts(self) -> tuple[int, int]:
        """(tokens, places) of the keys that attention reads; places include padding."""
        return (self.filled, self.input_ids.numel()) if self.layout is None else self.layout.key_counts


def split_ranks(
    rows: TrainingRows, chosen: np.ndarray, max_tokens: int, ranks: int, packed: bool
) -> list[list[np.ndarray]]:
    """Split rows into micro-batches for each rank.

    Args:
        rows: All rows of the step.
        chosen: Indices of the rows to split.
        max_tokens: Most tokens that a micro-batch computes, unless a single row is longer.
        ranks: Number of ranks.
        packed: Whether micro-batches are packed.

    Returns:
        For each rank its micro-batches, each an array of row indices; all ranks have equally many.
    """
    split = _split_packed(rows, chosen, max_tokens, ranks) if packed else _split_padded(rows, chosen, max_tokens, ranks)
    longest = max(len(batches) for batches in split)
    return [batches + [np.zeros(0, dtype=np.int64)] * (longest - len(batches)) for batches in split]


def _split_packed(rows: TrainingRows, chosen: np.ndarray, max_tokens: int, ranks: int) -> list[list[np.ndarray]]:
    responses, prompts = rows.response_lengths - 1, rows.prompt_lengths
    share = np.inf if ranks == 1 else responses[chosen].sum() / ranks / PIECES
    pieces: list[tuple[int, list[int]]] = []
    for group in _runs(rows.group[chosen]):
        members = chosen[group]
        prompt, tokens = int(prompts[members[0]]), 0
        piece: list[int] = []
        for row in members:
            own = int(responses[row])
            if piece and (prompt + tokens + own > max_tokens or tokens + own > share):
                pieces.append((prompt + tokens, piece))
                piece, tokens = [], 0
            piece.append(int(row))
            tokens += own
        pieces.append((prompt + tokens, piece))
    pieces.sort(key=lambda piece: -piece[0])
    loads = [(0, rank) for rank in range(ranks)]
    dealt: list[list[tuple[int, list[int]]]] = [[] for _ in range(ranks)]
    for tokens, piece in pieces:
        load, rank = heapq.heappop(loads)
        dealt[rank].append((tokens, piece))
        heapq.heappush(loads, (load + tokens, rank))
    return [_first_fit(part, max_tokens) for part in dealt]


def _runs(values: np.ndarray) -> list[np.ndarray]:
    """Return the indices of each run of equal neighbours."""
    return [] if len(values) == 0 else np.split(np.arange(len(values)), np.flatnonzero(np.diff(values)) + 1)


def _first_fit(pieces: list[tuple[int, list[int]]], max_tokens: int) -> list[np.ndarray]:
    """Fill micro-batches by first fit, largest piece first; they come out roughly largest first."""
    free_tokens: list[int] = []
    batches: list[list[int]] = []
    for tokens, piece in pieces:
        place = next((place for place, free in enumerate(free_tokens) if tokens <= free), None)
        if place is None:
            free_tokens.append(max_tokens - tokens)
            batches.append(list(piece))
        else:
            free_tokens[place] -= tokens
            batches[place] += piece
    return [np.array(sorted(batch), dtype=np.int64) for batch in batches]


def _split_padded(rows: TrainingRows, chosen: np.ndarray, max_tokens: int, ranks: int) -> list[list[np.ndarray]]:
    """Deal rows longest first, back and forth (0 1 2 2 1 0 ...), so that ranks differ by about one row."""
    lengths = rows.lengths[chosen] - 1
    order = np.argsort(-lengths, kind="stable")
    place = np.arange(len(order)) % (2 * ranks)
    rank_of = np.minimum(place, 2 * ranks - 1 - place)
    split = []
    for rank in range(ranks):
        mine = order[rank_of == rank]
        batches = []
        for bucket in reversed(length_buckets(lengths[mine])):
            size = max(1, max_tokens // max(1, int(lengths[mine[bucket]].max())))
            batches += [chosen[mine[bucket[first : first + size]]] for first in range(0, len(bucket), size)]
        split.append(batches)
    return split


def collate(rows: TrainingRows, indices: np.ndarray, packed: bool) -> MicroBatch:
    """Build one micro-batch.

    Args:
        rows: All rows of the step.
        indices: The micro-batch's rows; without any it is a single token that predicts nothing.
        packed: Whether to pack or to pad.
    """
    if len(indices) == 0:
        none = torch.zeros(0, dtype=torch.int64)
        real = torch.zeros(0)
        tokens = torch.zeros(1, 1, dtype=torch.int64)
        layout = packed_layout([(0, 1, 0, 0)], 1) if packed else None
        return MicroBatch(tokens, tokens, layout, none, none, none, none, none, real, real, real, filled=0, rows=0)
    starts = (np.cumsum(rows.lengths) - rows.lengths)[indices]
    prompts, responses = rows.prompt_lengths[indices], rows.response_lengths[indices]
    ends = starts + prompts + responses
    first = (np.cumsum(rows.response_lengths) - rows.response_lengths)[indices]
    sampled = np.concatenate([rows.sampled[s : s + n] for s, n in zip(first, responses, strict=True)])
    targets = np.concatenate([rows.tokens[e - n : e] for e, n in zip(ends, responses, strict=True)])[sampled]
    if packed:
        input_ids, positions, places, layout = _packed(rows, indices, starts, prompts, responses)
    else:
        input_ids, positions, places, layout = _padded(rows, starts, prompts, responses)
    keep, source = np.unique(places[sampled], return_inverse=True)
    order = np.argsort(source, kind="stable")
    engine = np.concatenate([rows.logprobs[s : s + n] for s, n in zip(first, responses, strict=True)])[sampled]

    def each(values: np.ndarray, kind: type) -> Tensor:
        return torch.from_numpy(values[order].astype(kind))

    def spread(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, responses)[sampled]

    return MicroBatch(
        input_ids=torch.from_numpy(input_ids),
        positions=torch.from_numpy(positions),
        layout=layout,
        keep=torch.from_numpy(keep),
        source=each(source, np.int64),
        targets=each(targets, np.int64),
        rollout=each(spread(np.arange(len(indices))), np.int64),
        order=torch.from_numpy(order),
        logprobs=each(engine, np.float32),
        advantages=each(spread(rows.advantages[indices]), np.float32),
        weights=each(spread(rows.weights[indices]), np.float32),
        filled=input_ids.size if packed else int((prompts + responses - 1).sum()),
        rows=len(indices),
    )


def own_part(batch: MicroBatch, ranks: ContextRanks) -> MicroBatch:
    """Return a micro-batch of which this rank computes its part of the tokens; a padded one is not divided.

    Args:
        batch: The whole micro-batch, on the CPU.
        ranks: The ranks that compute it together.
    """
    if ranks.size == 1 or batch.layout is None:
        return batch
    tokens = batch.input_ids.shape[1]
    part = ranks.part(tokens)
    start = ranks.rank * part
    # Padding is in no segment and predicts nothing.
    padding = (0, ranks.size * part - tokens)
    input_ids, positions = (
        functional.pad(each, padding)[:, start : start + part] for each in (batch.input_ids, batch.positions)
    )
    # Places are sorted, and targets by place: what belongs to a part is contiguous.
    bounds = torch.arange(ranks.size + 1) * part
    kept = torch.searchsorted(batch.keep, bounds)
    ends = torch.searchsorted(batch.source, kept).tolist()
    first, last = kept[ranks.rank : ranks.rank + 2].tolist()
    own = slice(*ends[ranks.rank : ranks.rank + 2])
    return replace(
        batch,
        input_ids=input_ids,
        positions=positions,
        layout=replace(batch.layout, ranks=ranks),
        keep=batch.keep[first:last] - start,
        source=batch.source[own] - first,
        targets=batch.targets[own],
        parts=TargetParts(ranks, tuple(np.diff(ends).tolist())),
    )


def _packed(
    rows: TrainingRows, indices: np.ndarray, starts: np.ndarray, prompts: np.ndarray, responses: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, PackedLayout]:
    """Return input_ids and positions (1, T), the place that predicts each response token, and the layout."""
    tokens, positions, places, segments, end = [], [], [], [], 0
    for run in _runs(rows.group[indices]):
        prompt, root = int(prompts[run[0]]), end
        tokens.append(rows.tokens[starts[run[0]] : starts[run[0]] + prompt])
        positions.append(np.arange(prompt))
        segments.append((root, prompt, 0, 0))
        end += prompt
        for i in run:
            own, begin = int(responses[i]) - 1, int(starts[i]) + prompt
            places += [np.array([root + prompt - 1]), np.arange(end, end + own)]
            if own:
                tokens.append(rows.tokens[begin : begin + own])
                positions.append(np.arange(prompt, prompt + own))
                segments.append((end, own, root, prompt))
                end += own
    flat = np.concatenate(tokens).astype(np.int64)[None]
    return flat, np.concatenate(positions)[None], np.concatenate(places), packed_layout(segments, end)


def _padded(
    rows: TrainingRows, starts: np.ndarray, prompts: np.ndarray, responses: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, None]:
    """Return input_ids and positions (B, T) and the place that predicts each response token."""
    lengths = prompts + responses - 1
    width = int(lengths.max())
    input_ids = np.zeros((len(lengths), width), dtype=np.int64)
    places = []
    for b, (start, length, prompt) in enumerate(zip(starts, lengths, prompts, strict=True)):
        input_ids[b, :length] = rows.tokens[start : start + length]
        places.append(b * width + np.arange(prompt - 1, length))
    positions = np.broadcast_to(np.arange(width), input_ids.shape).copy()
    return input_ids, positions, np.concatenate(places), None
