"""How large the pools are: from a model's config, the memory there is, and what was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from plait import accounting
from plait.accounting import Dtype, recurrent_bytes
from plait.config import ModelConfig
from plait.serve.options import EngineOptions
from plait.serve.pools import PoolSizes

GIB = 2**30

STATE_SHARE = 0.2
"""Of the cache's memory that is left beside running sequences, what goes to their states rather than to pages: a state
every 4096 tokens weighs 13 % (Jamba-1.5-Mini) to 26 % of the pages it belongs to, and short prompts need more."""

MOST_STATES = 64
"""Cached states for each running sequence: every slot also has a line in the page table."""


@dataclass(frozen=True)
class Fitted:
    sizes: PoolSizes
    max_context: int
    page_bytes: int
    state_bytes: int  # on the device
    host_state_bytes: int  # on the host and on disk


def fit_pools(
    config: ModelConfig,
    options: EngineOptions,
    *,
    page_size: int,
    dtype: Dtype,
    kv_dtype: Dtype,
    free_bytes: int,
    all_bytes: int | None = None,
    split: int = 1,
) -> Fitted:
    """Pools for `free_bytes` of device memory beside the weights; a size that was asked for may take `all_bytes`. All
    bytes are those of `split` processes together, each of which has a share of every state and page, and of pages no
    less than one head.

    Every running sequence has a slot, and one sequence of max_context tokens has pages. If that doesn't fit and
    max_context was not given, it is what fits; if it was given, ValueError says what does.
    """
    page_bytes, state_bytes = accounting.page_bytes(config, page_size, kv_dtype), recurrent_bytes(config, dtype)
    page_bytes *= max(1, split // config.n_kv_heads)
    host_bytes = recurrent_bytes(config, dtype, "int8") if options.host_state_dtype == "int8" else state_bytes
    n_slots = options.max_running * (2 if options.n_drafts else 1)  # with drafts, the state before them too
    left = free_bytes - n_slots * state_bytes
    most_states = MOST_STATES * options.max_running
    n_pages = _pages(options.cache_tokens, left, page_bytes, page_size)
    if options.cache_tokens is not None and n_pages * page_bytes > max(left, all_bytes or 0):
        raise ValueError(
            f"cache_tokens={options.cache_tokens} take {n_pages * page_bytes / GIB:.2f} GiB, there are "
            f"{max(left, all_bytes or 0) / GIB:.2f}: ask for fewer"
        )
    wanted = options.max_context or config.max_context
    if options.cache_tokens is not None and options.max_context and n_pages * page_size < wanted:
        raise ValueError(
            f"cache_tokens={options.cache_tokens} can't hold one answer of max_context={wanted} tokens: "
            "make the one larger or the other smaller"
        )
    max_context = min(wanted, n_pages * page_size)
    if max_context < 1 or (options.max_context and max_context < wanted):
        raise ValueError(
            f"max_context={wanted} with max_running={options.max_running} needs "
            f"{(n_slots * state_bytes + -(-wanted // page_size) * page_bytes) / GIB:.2f} GiB beside the "
            f"weights, there are {free_bytes / GIB:.2f}: ask for less of either"
        )
    per_sequence = -(-max_context // page_size)
    n_pages = min(n_pages, options.max_running * per_sequence)  # more is of no use to a small model on a large machine
    n_states = 0
    if options.prefix_cache:
        given, beside = options.cached_states, left - per_sequence * page_bytes
        n_states = min(_states(left, beside, state_bytes, n_pages), most_states) if given is None else given
        if options.cache_tokens is None:
            room = (left - n_states * state_bytes) // page_bytes if page_bytes else n_pages
            n_pages = max(per_sequence, min(n_pages, room))
    host, disk = int(options.host_gib * GIB), int(options.disk_gib * GIB)
    return Fitted(
        PoolSizes(
            slots=n_slots + n_states,
            pages=n_pages,
            host_slots=int(host * STATE_SHARE) // host_bytes if host_bytes else 0,
            host_pages=int(host * (1 - STATE_SHARE)) // page_bytes if page_bytes else 0,
            disk_slots=int(disk * STATE_SHARE) // host_bytes if host_bytes else 0,
            disk_pages=int(disk * (1 - STATE_SHARE)) // page_bytes if page_bytes else 0,
        ),
        max_context,
        page_bytes,
        state_bytes,
        host_bytes,
    )


def _pages(cache_tokens: int | None, left: int, page_bytes: int, page_size: int) -> int:
    if cache_tokens is not None:
        return -(-cache_tokens // page_size)
    return max(left, 0) // page_bytes if page_bytes else 2**24  # without attention pages cost nothing


def _states(left: int, beside: int, state_bytes: int, n_pages: int) -> int:
    """A share of what is left, and no more than there is beside the longest sequence, or one for each page: states lie
    at ends of pages and of answers.
    """
    if not state_bytes:
        return n_pages
    return min(max(min(int(left * STATE_SHARE), beside), 0) // state_bytes, n_pages)
