"""Who asks: tenants by API key, each with a cache of its own and limits of its own."""

import hashlib
import hmac
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from headstart.errors import HeadstartError, did_you_mean
from headstart.server.body import MAX_BODY_BYTES
from headstart.strict_yaml import DuplicateKeyError, StrictLoader

_HASHED = "sha256:"
# A minute's allowance may be used up at once; it fills again evenly.
_MINUTE = 60.0


@dataclass(frozen=True)
class Limits:
    """What one tenant may ask for; None is no limit.

    Args:
        requests_per_minute: requests that arrive, whatever becomes of them.
        tokens_per_minute: prompt and generated tokens. The request that crosses the line is still served.
        max_concurrent_requests: requests being answered at once.
        max_prompt_tokens: length of one prompt.
        max_body_bytes: size of a request's body, at most what the server reads at all.
        request_timeout: seconds from a request's arrival to the end of its answer.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent_requests: int | None = None
    max_prompt_tokens: int | None = None
    max_body_bytes: int = MAX_BODY_BYTES
    request_timeout: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kinds = int | float if field.name == "request_timeout" else int
            if value is None and field.name != "max_body_bytes":
                continue
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
                what = "a number above 0" if field.name == "request_timeout" else "a whole number of at least 1"
                raise HeadstartError(f"{field.name} must be {what}, not {value!r}")
        if self.max_body_bytes > MAX_BODY_BYTES:
            raise HeadstartError(
                f"max_body_bytes ({self.max_body_bytes}) is more than the {MAX_BODY_BYTES} that the server reads"
            )


class Allowance:
    """So much per minute: a bucket that holds one minute's worth, fills evenly, and may go into debt.

    Args:
        per_minute: None is no limit.
        clock: seconds, for tests.
    """

    def __init__(self, per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = math.inf if per_minute is None else per_minute / _MINUTE
        self._full = math.inf if per_minute is None else float(per_minute)
        self._level, self._clock = self._full, clock
        self._at = clock()

    def wait(self, least: float) -> float:
        """Seconds until so much is there; 0 when it is there now."""
        if self._full == math.inf:
            return 0.0
        now = self._clock()
        self._level = min(self._full, self._level + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, (least - self._level) / self._rate)

    def spend(self, amount: float) -> None:
        """Take so much out, whether it is there or not."""
        self._level -= amount


class Tenant:
    """Somebody who sends requests, and what they have in use now.

    Args:
        name: for logs and metrics; never a key.
        salt: keeps its cached keys apart from everybody else's; empty for a server without tenants.
        limits: what it may ask for.

    Attributes:
        active: requests being answered.
        requests, tokens: what it may still use.
    """

    def __init__(self, name: str, salt: str, limits: Limits) -> None:
        self.name, self.salt, self.limits = name, salt, limits
        self.active = 0
        self.requests = Allowance(limits.requests_per_minute)
        self.tokens = Allowance(limits.tokens_per_minute)

    def cache_salt(self, asked: str | None) -> str | None:
        """The salt under which its keys are cached, with the request's own salt below it."""
        if not self.salt:
            return asked
        # The tenant's salt has a fixed length, so no request can write another tenant's.
        return self.salt + (asked or "")


current_tenant: ContextVar[Tenant | None] = ContextVar("current_tenant", default=None)
"""Whose request is being answered in this task."""


class Tenants:
    """Everybody who may send requests.

    Args:
        by_digest: tenants by the SHA-256 digests of their keys.
        limits: of everybody on a server that asks for no keys.

    Attributes:
        all: every tenant once.
        anonymous: who sends requests without a key, when none is asked for.
    """

    def __init__(self, by_digest: Mapping[bytes, Tenant], limits: Limits | None = None) -> None:
        self._by_digest = list(by_digest.items())
        self.anonymous = None if by_digest else Tenant("anonymous", "", limits or Limits())
        self.all = list(dict.fromkeys(by_digest.values())) or [self.anonymous]

    @property
    def keyed(self) -> bool:
        """Whether requests must bring a key."""
        return self.anonymous is None

    def find(self, key: bytes) -> Tenant | None:
        """Whose key it is."""
        given = hashlib.sha256(key).digest()
        found: Tenant | None = None
        # Every key is compared, and digests have one length, so the time taken tells nothing about any key.
        for digest, tenant in self._by_digest:
            if hmac.compare_digest(given, digest):
                found = tenant
        return found

    @property
    def salts(self) -> dict[str, str]:
        """Names by cache salt."""
        return {tenant.salt: tenant.name for tenant in self.all if tenant is not None}


def tenants_of_keys(keys: Iterable[str], limits: Limits | None = None) -> Tenants:
    """One tenant per key, with the same limits; without keys, one for everybody.

    Raises:
        HeadstartError: a key is empty or nothing but spaces.
    """
    limits = limits or Limits()
    found: dict[bytes, Tenant] = {}
    for number, key in enumerate(dict.fromkeys(keys), 1):
        digest = _digest(key)
        found[digest] = Tenant(f"key-{number}", hashlib.sha256(b"key:" + digest).hexdigest(), limits)
    return Tenants(found, limits)


def read_tenants(path: Path, keys: Iterable[str] = (), limits: Limits | None = None) -> Tenants:
    """Tenants from a YAML file, and one more per key in `keys`.

    The file names tenants; each has `keys` (as text, or as `sha256:HEX` so that the file holds no secrets) and any of
    the fields of `Limits`, which stand in for the server's:

        tenants:
          acme: {keys: [sk-acme-1, "sha256:9f86..."], requests_per_minute: 600, max_concurrent_requests: 32}
          trial: {keys: [sk-trial], tokens_per_minute: 20000, request_timeout: 60}

    Raises:
        HeadstartError: the file cannot be read, or says something that is not understood.
    """
    limits = limits or Limits()
    found = dict(tenants_of_keys(keys, limits)._by_digest)
    for name, entry in _entries(path).items():
        where = f"{path}: tenant {name}"
        if not isinstance(entry, dict) or not isinstance(entry.get("keys"), list) or not entry["keys"]:
            raise HeadstartError(f"{where} needs 'keys', a list of at least one key")
        own = {field: value for field, value in entry.items() if field != "keys"}
        known = [field.name for field in fields(Limits)]
        for field in own:
            if field not in known:
                raise HeadstartError(f"{where} has {field!r}, which is no limit{did_you_mean(str(field), known)}")
        try:
            # The name, not the key: a tenant that changes its key keeps its cache.
            salt = hashlib.sha256(b"tenant:" + name.encode()).hexdigest()
            tenant = Tenant(name, salt, replace(limits, **own))
            digests = [_digest(key) for key in entry["keys"]]
        except HeadstartError as error:
            raise HeadstartError(f"{where}: {error}") from None
        for digest in digests:
            if digest in found:
                raise HeadstartError(f"{where} has a key that {found[digest].name} has too; give each its own")
            found[digest] = tenant
    return Tenants(found)


def _entries(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text("utf-8"), StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise HeadstartError(f"the tenants file {path} cannot be read: {reason}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        if isinstance(error, DuplicateKeyError):
            raise HeadstartError(f"the tenants file {path} is ambiguous{line}: {error.problem}") from None
        raise HeadstartError(f"the tenants file {path} is not valid YAML{line}") from None
    tenants = data.get("tenants") if isinstance(data, dict) and set(data) == {"tenants"} else None
    if not isinstance(tenants, dict) or not tenants or not all(isinstance(name, str) and name for name in tenants):
        raise HeadstartError(f"the tenants file {path} must hold 'tenants' alone, which maps names to keys and limits")
    return tenants


def _digest(key: Any) -> bytes:
    """The SHA-256 digest of a key that is given as text, or as `sha256:HEX`."""
    if not isinstance(key, str):
        raise HeadstartError("a key must be text; put it in quotes")
    if not key.strip():
        raise HeadstartError("an API key is empty, so that anybody has it; give each key at least one character")
    if not key.startswith(_HASHED):
        return hashlib.sha256(key.strip().encode()).digest()
    try:
        digest = bytes.fromhex(key.removeprefix(_HASHED))
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise HeadstartError("a key that begins with 'sha256:' must go on with 64 hexadecimal digits")
    return digest
