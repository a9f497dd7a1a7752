"""Calls to one server: signed, tried again where that may help, and every byte counted at the socket.

Failures that may pass by themselves (no connection, a cut or late answer, 429, 502, 503, 504) are tried again, each
time signed anew; that is harmless because every call of CoDA may reach the server twice. What is left has one error
per cause:

Unreachable   no answer, one cut short, or one that is plainly not from a CoDA server (a log-in page of the network)
Refused       the server's "no", with its own words where it gave some
Yielded       the byte budget is used up
TrustError    a certificate that does not verify, or a blob that is not the one named
WireError     an answer larger than the limit
StoreError    no room for a blob
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from device_runtime.bundle import BlobStore, FileRef
from device_runtime.connection import Address, Connection, MayPassError, clip
from device_runtime.counting import ByteCounter
from device_runtime.errors import Refused, TrustError, Unreachable, WireError
from device_runtime.identity import Signer, parse_authorization
from device_runtime.messages import Problem, from_json
from device_runtime.partial import PartialBlob
from device_runtime.proxies import Proxy, from_environment

_T = TypeVar("_T")
_PASSING = frozenset({429, 502, 503, 504})
_PAGE = "text/html"
"""The media type of what no CoDA server sends, and every captive portal."""
_SKEW_S = 60.0
"""A device's clock that differs by more from that of a server that refuses its signature is held to be the reason."""


@dataclass(frozen=True)
class TransportLimits:
    """connect_timeout_s: to open a connection, for each address of the host. read_timeout_s: between two arrivals of
    bytes. answer_timeout_s: for one whole answer, so that one that drips in for ever ends too. max_answer_bytes: of one
    answer's body; blobs are bounded by their stated size instead. attempts: of one call, the first included.
    base_backoff_s: wait before the second attempt, doubled for each further one, with up to half of it taken off at
    random. max_backoff_s: the longest such wait, and the longest that a server may ask for by Retry-After: where it
    asks for more, its refusal is final.
    """

    connect_timeout_s: float = 10.0
    read_timeout_s: float = 30.0
    answer_timeout_s: float = 900.0
    max_answer_bytes: int = 64 << 20
    attempts: int = 4
    base_backoff_s: float = 0.5
    max_backoff_s: float = 30.0


DEFAULT_LIMITS = TransportLimits()


@dataclass(frozen=True)
class Answer:
    """headers: looked up without regard to case. nonce: of the request that it answers, "" if that was unsigned."""

    status: int
    headers: Message
    body: bytes
    nonce: str


class Transport:
    """The device's side of all calls to one server, over one kept connection. One thread at a time.

    Attributes:
        bundle: the version that the device runs, told on signed requests; 0 if it has none.
        stale: what answers have said to be stale, such as "bundle"; "" if nothing was.
    """

    def __init__(
        self,
        base_url: str,
        counter: ByteCounter,
        *,
        signer: Signer | None = None,
        device: str = "",
        limits: TransportLimits = DEFAULT_LIMITS,
        ca_file: Path | None = None,
        proxy: str | None = None,
        pulse: Callable[[], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        """No connection is made yet.

        base_url: http or https, host, and where needed port and path prefix. signer, device: who signs the requests;
        without a signer they go unsigned. ca_file: PEM certificates to trust instead of the system's. proxy: the
        address of an HTTP proxy; None: that of the environment (`proxies.from_environment`), "": none. pulse: called
        while answers arrive; may wait, or raise to break off. sleep: takes seconds. clock: seconds since 1970.
        uniform: numbers in [0, 1), for the jitter.

        Raises:
            InputError: the address, the CA file or the proxy cannot be used.
        """
        address = Address.parse(base_url)
        self.base_url = address.url
        self.counter = counter
        self.bundle, self.stale = 0, ""
        self._signer, self._device = signer, device
        self._limits = limits
        self._sleep, self._clock, self._uniform = sleep, clock, uniform
        self._connection = Connection(
            address,
            counter,
            connect_timeout_s=limits.connect_timeout_s,
            read_timeout_s=limits.read_timeout_s,
            answer_timeout_s=limits.answer_timeout_s,
            ca_file=ca_file,
            proxy=_proxy(address, proxy),
            pulse=pulse,
        )
        self._offset_s = 0.0

    def __enter__(self) -> Transport:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the kept connection; a further call opens another."""
        self._connection.close()

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        label: str,
        content_type: str = "application/json",
        accept: str = "",
        accept_status: Collection[int] = (200,),
        headers: Mapping[str, str] | None = None,
        signed: bool = True,
    ) -> Answer:
        """Make a call, as often as the limits allow, until its answer has one of the accepted statuses.

        path: what follows the base URL; the signature covers it as given here. label: the message that the bytes
        count for. content_type: of the body, sent if there is one. accept: the media type that the answer's body
        must have; "" is any but HTML. signed: False for what anybody may ask.

        Raises:
            Unreachable: no answer, an incomplete one, or one from something else than a CoDA server.
            Refused: another status.
            WireError: the answer is larger than `max_answer_bytes`; it was not read to its end.
            TrustError: the server's certificate does not verify.
            Yielded: the byte budget of the counter is used up.
        """
        fixed = dict(headers or {})
        if body:
            fixed["Content-Type"] = content_type
        if accept:
            fixed["Accept"] = accept
        signer = self._signer if signed else None
        if signer is not None and self.bundle:
            fixed["CoDA-Bundle"] = str(self.bundle)

        def heads() -> Mapping[str, str]:
            if signer is None:
                return fixed
            return fixed | {
                "Authorization": signer.authorization(self._device, method, path, body, self._clock() + self._offset_s)
            }

        def once() -> Answer:
            with self._connection.exchange(method, path, body, heads, label) as (response, sent):
                if response.status in accept_status and _media_type(response.msg) == _PAGE:
                    raise self._not_ours(response.msg, accept)
                content = b"".join(self._connection.chunks(response, self._limits.max_answer_bytes))
            nonce = parse_authorization(sent["Authorization"])[2] if "Authorization" in sent else ""
            answer = Answer(response.status, response.msg, content, nonce)
            if answer.status not in accept_status:
                refusal = self._refusal(f"{method} {path}", answer.status, answer.headers, content)
                if answer.status == 401 and isinstance(refusal, Refused) and self._learn_time(answer.headers):
                    raise MayPassError(refusal, 0.0)
                raise refusal
            self.stale = response.msg.get("CoDA-Stale", self.stale)
            if content and accept not in ("", _media_type(answer.headers)):
                raise self._not_ours(answer.headers, accept)
            return answer

        return self._persist(once)

    def fetch_blob(self, ref: FileRef, store: BlobStore, label: str = "blob") -> int:
        """See to it that the store holds a blob; bytes that an earlier, cut transfer left there are not sent again.

        Requests are unsigned: blobs are public and immutable. A server resumes only if its ETag of a blob is the
        sha256 in quotes; otherwise the blob comes whole.

        Returns:
            Bytes of the blob that this call received; 0 where the store had it, and then without any request.

        Raises:
            Unreachable, Refused: as for `request`; what has arrived is kept for the next call.
            TrustError: the server's blob has another size or hash than the reference; nothing of it is kept.
            WireError: the reference itself is out of bounds.
            StoreError: the disk is full or refuses.
        """
        part = PartialBlob(ref, store)
        if store.has(ref):
            return 0
        # Bytes left by an earlier call may be bad themselves, say after a power cut: then once more, without them.
        for _ in range(2 if part.size() else 1):
            self._persist(lambda: self._fetch(part, label))
            if part.is_genuine():
                part.commit()
                return part.received
            part.discard()
        raise TrustError(f"{self.base_url} has a damaged blob {ref.sha256[:12]}…; it was not kept. Tell its operator")

    def _fetch(self, part: PartialBlob, label: str) -> None:
        """Receive what is lacking, as far as one connection goes."""
        at, size = part.size(), part.ref.size
        if at and at == size:
            return
        part.check_room()
        path = f"/v1/blobs/{part.ref.sha256}"
        fixed = {"Range": f"bytes={at}-", "If-Range": f'"{part.ref.sha256}"'} if at else {}
        with self._connection.exchange("GET", path, b"", lambda: fixed, label) as (response, _):
            if response.status not in (200, 206, 416):
                content = b"".join(self._connection.chunks(response, self._limits.max_answer_bytes))
                raise self._refusal(f"GET {path}", response.status, response.msg, content)
            if _media_type(response.msg) == _PAGE:
                raise self._not_ours(response.msg, "")
            if response.status == 416:  # less than what is at hand
                part.discard()
                raise self._another_blob(part.ref)
            if response.status == 200:
                at = 0
            elif not response.msg.get("Content-Range", "").startswith(f"bytes {at}-"):
                raise Unreachable(f"{self.base_url} sent other bytes of {path} than asked for; tell its operator")
            try:
                part.write(self._connection.chunks(response, size - at), at)
            except WireError:
                part.discard()
                raise self._another_blob(part.ref) from None

    def _another_blob(self, ref: FileRef) -> TrustError:
        return TrustError(
            f"{self.base_url} has another file as blob {ref.sha256[:12]}…: not the {ref.size} bytes expected. "
            "It was not kept. Tell its operator"
        )

    def _learn_time(self, headers: Message) -> bool:
        """Sign by the server's clock from now on, if this device's is far from it: it may have no battery."""
        stated = _date(headers.get("Date", ""))
        if stated is None or abs(stated - self._clock() - self._offset_s) <= _SKEW_S:
            return False
        self._offset_s = stated - self._clock()
        return True

    def _persist(self, once: Callable[[], _T]) -> _T:
        attempt = 1
        while True:
            self.counter.check()
            try:
                return once()
            except MayPassError as failure:
                asked = failure.wait_s or 0.0
                if attempt >= self._limits.attempts or asked > self._limits.max_backoff_s:
                    raise failure.error from None
            backoff = min(self._limits.base_backoff_s * 2 ** (attempt - 1), self._limits.max_backoff_s)
            self._sleep(asked + backoff * (1 - self._uniform() / 2))
            attempt += 1

    def _refusal(self, call: str, status: int, headers: Message, content: bytes) -> Exception:
        if 300 <= status < 400:
            return Unreachable(
                f"{self.base_url} redirects {call} to {clip(headers.get('Location', 'nowhere'))}; redirects are not "
                "followed: sign in to this network if it asks for that, or correct the server's address"
            )
        try:
            problem = from_json(content, Problem, "a problem")
            words = clip(f"{problem.title}: {problem.detail}" if problem.detail else problem.title)
        except WireError:  # pages of proxies and portals are described, not quoted
            kind = clip(headers.get_content_type()) if content else "nothing"
            words = f"{kind} instead of a reason; perhaps something in between answered, or it is another server"
        error = Refused(status, f"{self.base_url} refused {call} with status {status}: {words}")
        return MayPassError(error, self._asked_wait_s(headers)) if status in _PASSING else error

    def _not_ours(self, headers: Message, accept: str) -> Unreachable:
        found = _media_type(headers)
        kind = "a web page" if found == _PAGE else clip(found) or "something without a type"
        return Unreachable(
            f"{self.base_url} answers with {kind} instead of {accept or 'data'}: this network may want a log-in "
            "first (captive portal), or the address is another server's"
        )

    def _asked_wait_s(self, headers: Message) -> float | None:
        """Seconds by the Retry-After header, which is a number or a date."""
        stated = headers.get("Retry-After", "").strip()
        if stated.isdecimal() and stated.isascii():
            return float(stated)
        until = _date(stated)
        if until is None:
            return None
        now = _date(headers.get("Date", ""))  # the server's clock: devices without a battery clock can be years off
        return max(0.0, until - (self._clock() if now is None else now))


def _proxy(address: Address, given: str | None) -> Proxy | None:
    if given is None:
        return from_environment(address.host, address.port, address.tls)
    return Proxy.parse(given) if given else None


def _media_type(headers: Message) -> str:
    return headers.get("Content-Type", "").partition(";")[0].strip().lower()


def _date(text: str) -> float | None:
    """Seconds since 1970 of an HTTP date; None if it is none."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None
