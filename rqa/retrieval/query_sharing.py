"""Queries that all processes embed, while the main process retrieves."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from rqa.distributed.accelerator import exchange_lists
from rqa.errors import InputError
from rqa.timing import Span, gather_spans, record_spans

MIN_SHARED = 1024  # queries of a run: for fewer, the other processes would load the encoder for longer than they help
BLOCK = 512  # queries: a few batches of a GPU, so that blocks cost little speed and the ranks are equally busy


class QueryEncoder(Protocol):
    """An `Encoder`. It can be pickled."""

    device: torch.device

    def encode_query_blocks(self, blocks: Iterable[Sequence[str]], num_queries: int) -> Iterator[np.ndarray]:
        """Yield the vectors (n, D) of each block of queries."""


# Embeds the queries of all encoders of this process, inside `share_queries`.
shared_embedding: ContextVar[Callable[[QueryEncoder, Sequence[str]], np.ndarray] | None] = ContextVar(
    "shared_embedding", default=None
)


def query_blocks(queries: Sequence[str]) -> list[list[int]]:
    """Return the places of the queries of each block, the longest queries first.

    The last bits of an embedding depend on its block, and blocks do not depend on the number of processes.
    """
    order = sorted(range(len(queries)), key=lambda i: -len(queries[i].encode()))
    return [order[start : start + BLOCK] for start in range(0, len(order), BLOCK)]


def join_blocks(blocks: Sequence[Sequence[int]], parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the vectors of all blocks in the order of the queries."""
    if not parts:
        return np.empty((0, 0), np.float32)
    joined = np.concatenate(parts)
    vectors = np.empty_like(joined)
    vectors[np.concatenate(blocks)] = joined
    return vectors


@contextmanager
def share_queries(accelerator: Accelerator, num_queries: int) -> Iterator[None]:
    """Embed the queries of the main process inside the block on all processes, if there are many.

    The other processes embed before they enter the block, until the main process leaves it. They load an encoder when
    its first query is embedded.
    """
    if accelerator.num_processes == 1 or num_queries < MIN_SHARED:
        yield
    elif accelerator.is_main_process:
        encoders: list[QueryEncoder] = []

        def embed(encoder: QueryEncoder, queries: Sequence[str]) -> np.ndarray:
            if encoder not in encoders:
                encoders.append(encoder)
            job = encoders.index(encoder), encoder, queries
            broadcast_object_list([job])
            return _embed(accelerator, encoder, queries)

        before = shared_embedding.set(embed)
        try:
            yield
        finally:
            shared_embedding.reset(before)
        broadcast_object_list([None])  # not after an error: it ends this process, and the launcher the others
    else:
        _serve(accelerator)
        yield


def _serve(accelerator: Accelerator) -> None:
    """Embed shares of the main process's queries, until it sends None."""
    encoders: dict[int, QueryEncoder] = {}
    while (job := broadcast_object_list([None])[0]) is not None:
        number, encoder, queries = job
        if number not in encoders:
            encoder.device = accelerator.device
            encoders[number] = encoder
        _embed(accelerator, encoders[number], queries)


@dataclass
class _Share:
    """The vectors of the blocks of a rank, its spans, and its error."""

    vectors: list[np.ndarray] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    error: Exception | None = None


def _embed(accelerator: Accelerator, encoder: QueryEncoder, queries: Sequence[str]) -> np.ndarray:
    """Return the vectors (n, D) on the main process, which raises the errors of all ranks; every rank calls this."""
    rank, num_ranks = accelerator.process_index, accelerator.num_processes
    blocks, shares = query_blocks(queries), list[_Share]()
    with gather_spans(lambda _: [span for share in shares for span in share.spans]):
        own = _own_share(encoder, [[queries[i] for i in block] for block in blocks[rank::num_ranks]])
        sent: list[list[_Share]] = [[own], *([] for _ in range(num_ranks - 1))]
        shares += [share for received in exchange_lists(sent) for share in received]
    for share in shares:
        if share.error:
            raise share.error
    parts = [shares[i % num_ranks].vectors[i // num_ranks] for i in range(len(blocks) if rank == 0 else 0)]
    return join_blocks(blocks, parts)


def _own_share(encoder: QueryEncoder, blocks: list[list[str]]) -> _Share:
    """Return the share of this rank. An error is part of it: the other ranks wait for the share."""
    share = _Share()
    try:
        with record_spans() as share.spans:
            share.vectors = [*encoder.encode_query_blocks(blocks, sum(map(len, blocks)))]
    except InputError as error:
        share.error = error
    except Exception as error:
        share.error = RuntimeError(f"{type(error).__name__}: {error}")
        share.error.__cause__ = error  # for the traceback; that of another process is not sent
    return share
