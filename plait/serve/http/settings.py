"""How a server is run: where it listens, who may ask, and how much."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServerSettings:
    """Raises ValueError for values outside the ranges given here, and for an open door: a host that others can reach
    with no key, unless `allow_no_key` says that this is wanted.
    """

    host: str = "127.0.0.1"
    port: int = 8000  # 0 takes a free one
    model_names: tuple[str, ...] = ()  # names that requests may use; the first is the one told; () takes the service's
    api_keys: tuple[str, ...] = ()
    api_key_file: Path | None = None
    allow_no_key: bool = False
    lenient: bool = False  # unknown fields are ignored (unsupported ones are refused all the same)
    max_body_bytes: int = 16 * 2**20
    max_tokens: int | None = None  # of one answer; None: what fits the context
    max_concurrent: int = 256  # requests in the engine at once
    max_queued: int = 1024  # requests that wait for their turn; the next one gets a 429
    max_connections: int = 4096
    header_timeout_s: float = 10.0  # for a request's head to arrive
    body_timeout_s: float = 60.0  # for its body
    request_timeout_s: float = 600.0  # from there to the last byte of the answer
    ping_s: float = 15.0  # a stream with nothing to say sends a comment this often
    drain_s: float = 30.0  # after SIGTERM: how long answers may go on
    log_prompts: bool = False
    batch_folder: Path | None = None  # where files and batches are kept; None: there are none
    max_file_bytes: int = 128 * 2**20  # of an uploaded file

    def __post_init__(self) -> None:
        for name in (
            "max_body_bytes", "max_concurrent", "max_connections", "header_timeout_s", "body_timeout_s",
            "request_timeout_s", "ping_s", "max_file_bytes",
        ):  # fmt: skip
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be greater than 0")
        for name in ("max_queued", "drain_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens} must be at least 1")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port={self.port} must be from 0 to 65535")
        if not (is_loopback(self.host) or self.needs_key or self.allow_no_key):
            raise ValueError(
                f"host={self.host} can be reached from other machines and there is no API key: give one (--api-key or"
                " --api-keys FILE), listen on 127.0.0.1, or say --allow-no-key"
            )

    @property
    def needs_key(self) -> bool:
        return bool(self.api_keys) or self.api_key_file is not None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
