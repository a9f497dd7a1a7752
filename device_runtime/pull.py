"""The current bundle onto the device: announced, fetched by content hash, verified, tried on its engine, in service."""

from __future__ import annotations

from device_runtime.bundle import FileRef, files_of
from device_runtime.engines import Engine
from device_runtime.engines.selftest import self_test, trial
from device_runtime.errors import TrustError, WireError
from device_runtime.home import DeviceHome
from device_runtime.identity import answer_text, verify
from device_runtime.messages import BundleRef, from_json, profile_digest, to_json
from device_runtime.meter import Meter
from device_runtime.model import VOCABULARY, Model
from device_runtime.transport import Answer, Transport


def pull(home: DeviceHome, transport: Transport, engine: Engine, meter: Meter) -> tuple[Model, BundleRef]:
    """The current bundle, with the rows of the device's own items; only what is lacking is fetched.

    Raises:
        TransportError, TrustError, WireError, StoreError: it could not be had; what served before still does.
        SelfTestFailed, EngineError: the engine does not train with it.
    """
    with meter.phase("pull"):
        ref, etag = announced(home, transport, engine)
        transport.fetch_blob(FileRef(ref.manifest, ref.size, ref.size, "none"), home.blobs, "manifest")
        manifest = home.manifest(ref)
        for name, blob in files_of(manifest, engine.format).items():
            transport.fetch_blob(blob, home.blobs, "graphs" if name.startswith("graph") else "weights")
        model = Model.open(manifest, engine, home.blobs)
        for number in model.shards_for(home.store.items()):
            transport.fetch_blob(manifest.tables[VOCABULARY].shards[number], home.blobs, "item rows")
    what = f"{ref.manifest}/{engine.name}/{engine.version}"
    if not home.store.passed(what):
        with meter.phase("self-test"):
            try_engine(model)
            home.store.pass_test(what)
    home.store.use_bundle(ref, etag)
    transport.bundle, transport.stale = ref.version, ""
    return model, ref


def announced(home: DeviceHome, transport: Transport, engine: Engine) -> tuple[BundleRef, str]:
    """The bundle that this device should have, with the ETag of its announcement: what it has, or what a signed call
    says.

    Raises:
        TrustError: an older one, and nobody who may has signed that it was rolled back.
    """
    serving, profile = home.store.bundle(), home.profile(engine.name)
    if serving and _up_to_date(home, transport, serving[0].version, profile_digest(profile)):
        return serving
    headers = {"CoDA-Profile": to_json(profile).decode()} | ({"If-None-Match": serving[1]} if serving else {})
    answer = transport.request(
        "GET", "/v1/bundle", label="bundle", accept="application/json", accept_status=(200, 304), headers=headers
    )
    if answer.headers.get("CoDA-Rotate-Key"):
        home.store.set(rotation="due")
    if answer.status == 304 and serving:
        return serving
    ref = from_json(answer.body, BundleRef, "the announced bundle")
    if serving and ref.version < serving[0].version:
        _check_rolled_back(home, transport, answer, ref, serving[0])
    return ref, answer.headers.get("ETag", "")


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
