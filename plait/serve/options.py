"""How an engine is built: the model, where it runs, and what it may use. Numbers and names only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineOptions:
    """Raises ValueError for values that no engine can have; what depends on the model or machine is told at building.

    model: a folder, or `demo`. quantize: METHOD or METHOD:LEVEL (`experts_int8:experts+mlp+mixers+head`), or None to
    take the weights as they are. Sizes left at None are chosen from the model and the memory there is.
    """

    model: str
    device: str = "cpu"
    dtype: str | None = None  # float32, bfloat16, float16; None: the checkpoint's own
    quantize: str | None = None
    kv_dtype: str | None = None  # of keys and values: a dtype, or int8; None: the model's
    max_context: int | None = None  # prompt and answer together; None: the model's own
    max_batched_tokens: int = 2048  # of one step, so that memory doesn't grow with the prompt
    max_running: int = 16  # answers written at once
    prefix_cache: bool = True
    cache_tokens: int | None = None  # that keys and values have room for
    cached_states: int | None = None  # kept for prefixes, beside those of running answers
    host_gib: float = 0.0  # of host memory for what the cache of a GPU has no room for
    disk: str | None = None  # a folder for what neither has room for; what dead engines left there is removed
    disk_gib: float = 0.0  # of it for each engine
    host_state_dtype: str = "float32"  # of the SSM states in host_gib and on disk; int8: a third of a state, not exact
    ladder: int = 4096  # tokens between the states kept along a long prompt
    n_drafts: int = 0  # tokens guessed from the text before and verified at once; 0: none
    tensor_parallel: int = 1  # processes that share the model
    expert_parallel: bool = False  # they share a mixture by whole experts, not by columns of each

    def __post_init__(self) -> None:
        lows = {"max_batched_tokens": 1, "max_running": 1, "ladder": 1, "tensor_parallel": 1, "n_drafts": 0}
        lows |= {"max_context": 1, "cache_tokens": 1, "cached_states": 0, "host_gib": 0, "disk_gib": 0}
        for name, low in lows.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name}={value} must be at least {low}")
        if self.expert_parallel and self.tensor_parallel == 1:
            raise ValueError("expert_parallel deals experts out to processes: give tensor_parallel at least 2")
        if self.host_state_dtype not in ("float32", "int8"):
            raise ValueError(f"host_state_dtype={self.host_state_dtype!r} must be float32 or int8")
        if self.host_state_dtype == "int8" and not (self.host_gib or self.disk_gib):
            raise ValueError("host_state_dtype='int8' is of states beside the device's: give host_gib, or disk")
        if (self.disk is None) != (self.disk_gib == 0):
            raise ValueError(
                f"disk={self.disk!r} and disk_gib={self.disk_gib} go together: a folder, and how much of it"
            )
