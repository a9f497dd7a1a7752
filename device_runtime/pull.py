"""The current bundle onto the device: announced, fetched by content hash, verified, tried on its engine, in service."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from device_runtime.bundle import FileRef, Manifest, files_of
from device_runtime.delta import apply_delta
from device_runtime.engines import Engine
from device_runtime.engines.selftest import self_test, trial
from device_runtime.errors import InputError, Refused, StoreError, TrustError, WireError
from device_runtime.home import DeviceHome
from device_runtime.identity import answer_text, verify
from device_runtime.messages import Announcement, BundleRef, from_json, profile_digest, to_json
from device_runtime.meter import Meter
from device_runtime.model import VOCABULARY, Model
from device_runtime.partial import PartialBlob
from device_runtime.transport import Answer, Transport
from device_runtime.trust import MAX_ROOTS, TrustedSet

log = logging.getLogger("coda.device")


def pull(
    home: DeviceHome, transport: Transport, engine: Engine, meter: Meter, now: Callable[[], float] = time.time
) -> tuple[Model, BundleRef]:
    """The bundle that this device should have, with the rows of its own items; only what is lacking is fetched.

    now: seconds since 1970, by which the publisher's documents expire.

    Raises:
        TransportError, TrustError, WireError, StoreError: it could not be had; what served before still does.
        SelfTestFailed, EngineError: the engine does not train with it.
    """
    with meter.phase("pull"):
        found = announced(home, transport, engine, now())
        ref = found.ref
        transport.fetch_blob(FileRef(ref.manifest, ref.size, ref.size, "none"), home.blobs, "manifest")
        manifest = home.manifest(ref, found.trusted)
        files = Files(home, transport, _held(home))
        for name, blob in files_of(manifest, engine.format).items():
            files.fetch(blob, "graphs" if name.startswith("graph") else "weights", lambda held: held.weights)
        model = Model.open(manifest, engine, home.blobs)
        for number in model.shards_for(home.store.items()):
            files.fetch(manifest.tables[VOCABULARY].shards[number], "item rows", partial(_shard, number))
    what = f"{ref.manifest}/{engine.name}/{engine.version}"
    if not home.store.passed(what):
        with meter.phase("self-test"):
            try_engine(model)
            home.store.pass_test(what)
    home.store.use_bundle(ref, found.etag, found.trusted)
    transport.bundle, transport.stale = ref.version, ""
    return model, ref


class Files:
    """Brings files of a bundle onto the device: as what differs from those of the bundle that it holds, where the
    server has that; else whole. before: of the bundle that it holds."""

    def __init__(self, home: DeviceHome, transport: Transport, before: Manifest | None) -> None:
        self._home, self._transport, self._before = home, transport, before

    def fetch(self, ref: FileRef, label: str, counterpart: Callable[[Manifest], FileRef | None]) -> None:
        """See to it that the device holds a file. counterpart: that in the bundle before.

        Raises:
            As `Transport.fetch_blob`.
        """
        blobs = self._home.blobs
        if self._before is not None and ref.plain is not None and not blobs.has(ref):
            base = counterpart(self._before)
            # a transfer of the whole file that was cut off goes on
            begun = PartialBlob(ref, blobs).size() > 0
            if base is not None and blobs.has(base) and not begun and self._made(ref, ref.plain, base):
                return
        self._transport.fetch_blob(ref, blobs, label)

    def _made(self, ref: FileRef, plain: FileRef, base: FileRef) -> bool:
        """Whether the file could be made of another one."""
        path = f"/v1/deltas/{base.sha256}/{ref.sha256}"
        try:
            answer = self._transport.request("GET", path, label="deltas", accept_status=(200, 404), signed=False)
            if answer.status == 404:  # nor has it any from the rest of that bundle
                self._before = None
            if answer.status == 404 or not answer.body:  # nothing: the whole file is shorter
                return False
            made = apply_delta(self._home.blobs.read(base), answer.body, ref.raw_size)
            if hashlib.sha256(made).hexdigest() != plain.sha256:
                raise WireError("it makes another file than the manifest has")
        except (Refused, WireError, TrustError) as error:
            log.warning("%s cannot be used: %s; the whole file is fetched instead", path, error)
            return False
        self._home.blobs.write(plain.sha256, made)
        return True


def _held(home: DeviceHome) -> Manifest | None:
    """Of the bundle that serves, if it can be read: what is damaged is not built upon."""
    try:
        return home.manifest()
    except (InputError, StoreError, TrustError, WireError) as error:
        if home.store.bundle() is not None:
            log.warning("the bundle that serves cannot be built upon: %s; files are fetched whole", error)
        return None


def _shard(number: int, manifest: Manifest) -> FileRef | None:
    shards = manifest.tables[VOCABULARY].shards
    return shards[number] if number < len(shards) else None


@dataclass(frozen=True)
class Found:
    """The bundle that a device should have. etag: of its announcement. trusted: the public key that its manifest must
    be signed with."""

    ref: BundleRef
    etag: str
    trusted: str


def announced(home: DeviceHome, transport: Transport, engine: Engine, now: float) -> Found:
    """What this device has, if a small question says that nothing is new; else what a signed call says.

    Raises:
        TrustError: what was announced may not be taken.
    """
    serving, profile, trusted = home.store.bundle(), home.profile(engine.name), home.trusted_set()
    # for as long as the server's last statement holds: whoever keeps news from the device could answer the question too
    asks = serving and (trusted is None or now < float(home.store.setting("fresh_until") or 0))
    known = (trusted.root.version, trusted.listing.version if trusted.listing else 0) if trusted else (0, 0)
    if serving and asks and _up_to_date(home, transport, serving[0].version, profile_digest(profile, *known)):
        return Found(*serving, home.trusted)
    headers = {"CoDA-Profile": to_json(profile).decode()}
    if serving and trusted is None:
        headers["If-None-Match"] = serving[1]
    answer = transport.request(
        "GET",
        "/v1/bundle",
        label="bundle",
        accept="application/json",
        headers=headers,
        accept_status=(200, 304) if trusted is None else (200,),
    )
    if answer.headers.get("CoDA-Rotate-Key"):
        home.store.set(rotation="due")
    if answer.status == 304 and serving:
        return Found(*serving, home.trusted)
    said = from_json(answer.body, Announcement, "the announced bundle")
    etag = answer.headers.get("ETag", "")
    if trusted is not None:
        public = _by_the_publisher(home, transport, trusted, answer, said, now)
        home.store.set(fresh_until=str(said.expires))
        return Found(said.ref, etag, public)
    if serving and said.version < serving[0].version:
        _check_rolled_back(home, transport, answer, said, serving[0])
    return Found(said.ref, etag, home.trusted)


def _up_to_date(home: DeviceHome, transport: Transport, version: int, profile: str) -> bool:
    """By a question of few bytes. A "no" may come from anybody: the signed call that follows tells the truth."""
    path = f"/v1/stale/{home.device}/{version}/{profile}"
    answer = transport.request("GET", path, label="bundle", accept_status=(200, 204, 404), signed=False)
    return answer.status == 204


def _check_rolled_back(
    home: DeviceHome, transport: Transport, answer: Answer, ref: BundleRef, serving: BundleRef
) -> None:
    """An older bundle is taken only from the server that this device trusts, in an answer to this very request.

    Raises:
        TrustError: nobody who may has said so.
    """
    try:
        signature = answer.headers.get("CoDA-Signature", "")
        verify(home.manifest(serving).answer_key, answer_text(answer.nonce, answer.body), signature)
    except TrustError:
        raise TrustError(
            f"{transport.base_url} announces bundle {ref.version}, but this device already has {serving.version}; an "
            "older one is refused unless the server signs that it was rolled back (a replay, or an old server)"
        ) from None


def _by_the_publisher(
    home: DeviceHome, transport: Transport, trusted: TrustedSet, answer: Answer, said: Announcement, now: float
) -> str:
    """Follow the publisher's documents to the bundle that is announced, and keep what was accepted on the way. Returns
    the public key that its manifest must be signed with."""
    text, signature = answer_text(answer.nonce, answer.body), answer.headers.get("CoDA-Signature", "")
    # a newer root proves itself: it may be taken before it is known who announces it, whose key it may have replaced
    for _ in range(min(max(said.root - trusted.root.version, 0), MAX_ROOTS)):
        trusted.update_root(_document(transport, "root", trusted.root.version + 1))
        home.keep_trusted(trusted)
    trusted.check_statement(text, signature)
    trusted.check_announcement(said, home.device, now)
    if not trusted.has_listing(said):
        trusted.update_listing(_document(transport, "bundles", said.listing_version), said, now)
        home.keep_trusted(trusted)
    return trusted.check_bundle(said.ref, now)


def _document(transport: Transport, role: str, version: int) -> bytes:
    path = f"/v1/metadata/{role}/{version}"
    return transport.request("GET", path, label="metadata", accept="application/json", signed=False).body


def try_engine(model: Model) -> None:
    """Try both step graphs on made-up rows and samples, from the bundle's weights, against the exporter's results.

    Raises:
        SelfTestFailed, EngineError: the engine must not be used.
        WireError: the bundle does not say what its steps should do.
    """
    settings = model.manifest.settings
    for name, held, rate in (
        ("step", model.base.dense, settings.rate),
        ("classifier_step", model.classifier, settings.classifier_rate),
    ):
        golden = model.manifest.graphs[name].golden
        if golden is None:
            raise WireError(f"the bundle has no golden steps of {name!r} to test an engine with; export it again")
        values, batch = trial(model.spec(name), held, golden.largest)
        self_test(model.engine, model.graph(name), values, batch, rate, golden)
