"""Prefix-aware routing, through the router hooks of Ray Serve (`RequestRouterConfig.request_router_class`).

A file of its own: Ray pickles the module of a router by value.
"""

from __future__ import annotations

import random
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from plait.serve.prefix_routing import PrefixMemory, note_figures


class PrefixRouter(RequestRouter):
    """Sends a prompt where most of it was read before, unless that replica is too busy; else to the less busy of two.

    Every router (one for each HTTP replica) goes by what it routed itself. Nothing is lost if two disagree but time.
    """

    def initialize_state(  # named here, so that Ray refuses others
        self, max_imbalance: int = 16, memory_size: int = 200_000
    ) -> None:
        """`max_imbalance`: requests that a replica may have under way beyond the least busy one and still get those
        whose prompts it knows.
        """
        self.memory = PrefixMemory[ReplicaID](memory_size)
        self.max_imbalance = max_imbalance

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks: the replicas that know the prompt, then two others. Of a rank the less busy that accepts is taken."""
        by_id = {replica.replica_id: replica for replica in candidate_replicas}
        keys = pending_request.kwargs.get("keys", ()) if pending_request is not None else ()
        known = [by_id[place] for place in self.memory.best(keys, by_id) if self._has_time(place, by_id)]
        others = [replica for replica in candidate_replicas if replica not in known]
        others = random.sample(others, min(2, len(others)))
        return [rank for rank in (known, others) if rank]

    def _has_time(self, place: Any, others: dict[Any, Any]) -> bool:
        busy = {other: self.replica_queue_len_cache.get(other) or 0 for other in others}
        return busy[place] - min(busy.values()) <= self.max_imbalance

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        self.memory.note(pending_request.kwargs.get("keys", ()), replica_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        note_figures({replica.replica_id.unique_id: replica.routing_stats for replica in replicas})
