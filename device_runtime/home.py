"""A device's folder: who it is, what it holds, and that only one round at a time works on it.

HOME/coda.db                  events, journal, what serves (store.py)
HOME/device.key               the private key, readable by its owner only
HOME/device.next.key          the one to replace it, while the server may not know it yet
HOME/trust/                   the publisher's root and list of bundles, if the device was given a root (trust.py)
HOME/blobs/                   bundle files by content hash
HOME/weights/VERSION.safetensors   what serves; VERSION.judged.safetensors: before it learned from held-out samples
HOME/rounds/ID/               working files of the round under way (working.py)
HOME/ca.pem                   certificates to trust instead of the system's, if the server's authority is private
HOME/profile.json             what the app tells of itself, by which releases are aimed: `messages.Profile`
HOME/policy.json, conditions.json, foreground, triggers.json     see schedule.py and triggers.py
HOME/cache/                   the ExecuTorch shim, where the machine has no other
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from device_runtime.bundle import BlobStore, Manifest, move_durably, open_manifest, read_tensors, write_atomically
from device_runtime.engines import Engine, installed
from device_runtime.errors import InputError, StoreError, TrustError, WireError
from device_runtime.identity import Signer, check_public_key, device_id, rotation_text
from device_runtime.locking import locked
from device_runtime.messages import MAX_PROFILE, BundleRef, Enrolled, Enrolment, Profile, Rotation, from_json, to_json
from device_runtime.model import Model, Weights
from device_runtime.platform_info import capability
from device_runtime.store import Store

if TYPE_CHECKING:
    from device_runtime.counting import ByteCounter
    from device_runtime.transport import Transport
    from device_runtime.trust import TrustedSet


class DeviceHome:
    """Use it in a `with`, or close it.

    Raises (from the constructor):
        StoreError: the folder cannot be used, or was written by another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = Store(path / "coda.db")
        self.blobs = BlobStore(path / "blobs")
        self.rounds = path / "rounds"
        self.cache = path / "cache"

    def __enter__(self) -> DeviceHome:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def locked(self) -> AbstractContextManager[None]:
        """Hold the home for a round. Raises: StoreError: another process does."""
        return locked(self.path)

    # -- identity -----------------------------------------------------------------------------------------------

    def signer(self) -> Signer:
        """The device's key, made when first asked for."""
        return Signer.open_or_create(self.path / "device.key")

    @property
    def trusted(self) -> str:
        """The release key that this device was given; with a root, the one that signed the bundle that serves. Raises:
        InputError: it is not enrolled."""
        return self._enrolled("trusted")

    def trusted_set(self) -> TrustedSet | None:
        """The publisher's documents that this device holds; None if it was given a single key instead.

        Raises:
            StoreError: they are damaged.
        """
        root, listing = self.path / "trust" / "root.json", self.path / "trust" / "bundles.json"
        if not root.exists():
            return None
        from device_runtime.trust import TrustedSet

        try:
            return TrustedSet(root.read_bytes(), listing.read_bytes() if listing.exists() else None)
        except (OSError, TrustError) as error:
            raise StoreError(f"{root.parent} is damaged ({error}); enrol again with --trust ROOT") from None

    def keep_trusted(self, trusted: TrustedSet) -> None:
        """Keep what a set has accepted; the list first, so that a cut never leaves a newer root with an older list."""
        folder = self.path / "trust"
        if trusted.listing_data:
            write_atomically(folder / "bundles.json", trusted.listing_data)
        else:
            (folder / "bundles.json").unlink(missing_ok=True)
        write_atomically(folder / "root.json", trusted.root_data)

    def _start_trust(self, root: bytes) -> None:
        """Begin with a root that was given by hand. The same one again changes nothing: it may have been followed."""
        given = hashlib.sha256(root).hexdigest()
        if self.store.setting("root_given") == given and (self.path / "trust" / "root.json").exists():
            return
        from device_runtime.trust import TrustedSet

        started = TrustedSet(root)
        started.check_self_signed()
        self.keep_trusted(started)
        self.store.set(root_given=given, fresh_until="0")

    @property
    def server(self) -> str:
        """Raises: InputError: it is not enrolled."""
        return self._enrolled("server")

    def _enrolled(self, name: str) -> str:
        value = self.store.setting(name)
        if value is None:
            raise InputError(f"{self.path} is not enrolled yet; run `coda device enrol --server URL --trust KEY` first")
        return value

    def transport(self, counter: ByteCounter, pulse: Callable[[], None] | None = None) -> Transport:
        """Calls to the server that this device is enrolled at, signed; certificates of `HOME/ca.pem` are trusted if
        there is such a file. pulse: see `Transport`."""
        from device_runtime.transport import Transport  # not at the top: ranking needs no network

        signer = self.signer()
        return Transport(
            self.server, counter, signer=signer, device=self._id_of(signer), ca_file=self._ca_file, pulse=pulse
        )

    @property
    def device(self) -> str:
        """The id that the server knows this device by. Raises: InputError: it is not enrolled."""
        return self._enrolled("device")

    def profile(self, engine: str) -> Profile:
        """What `HOME/profile.json` tells of the app, completed by what is known here.

        Raises:
            InputError: the file is no profile, or says too much.
        """
        path = self.path / "profile.json"
        try:
            told = msgspec.json.decode(path.read_bytes(), type=Profile) if path.exists() else Profile()
        except (OSError, msgspec.DecodeError) as error:
            raise InputError(f"{path}: {error}; correct it, or remove it") from None
        made = msgspec.structs.replace(told, os=told.os or platform.system().lower(), engine=engine)
        if not (text := to_json(made)).isascii() or len(text) > MAX_PROFILE:
            raise InputError(f"{path}: a profile is plain ASCII, and at most {MAX_PROFILE} bytes with what is added")
        return made

    def _id_of(self, signer: Signer, server: str | None = None) -> str:
        """The id that a server knows a key by: that of the device's first key there, or else the key's own."""
        known = (self.store.setting("keys") or "").split(",")
        if signer.public in known and server in (None, self.store.setting("server")):
            return self._enrolled("device")
        return device_id(signer.public)

    def rotate_key(self, counter: ByteCounter) -> None:
        """Replace the device's key by a new one, at the server first; its id stays. If it is cut off, the next call
        ends it with the same new key.

        Raises:
            InputError: the device is not enrolled. TransportError: the server cannot be reached or refuses; the old
            key is still in use. StoreError: the disk refused, or another process holds the home.
        """
        with self.locked():
            old, following = self.signer(), Signer.open_or_create(self.path / "device.next.key")
            device = self._id_of(old)
            self.store.set(device=device, keys=f"{old.public},{following.public}")
            proof = following.sign(rotation_text(device, following.public))
            with self.transport(counter) as transport:
                message = to_json(Rotation(public_key=following.public, proof=proof))
                transport.request("POST", "/v1/keys", message, label="rotate key", accept="application/json")
            move_durably(self.path / "device.next.key", self.path / "device.key")
            self.store.set(rotation="")

    @property
    def rotation_due(self) -> bool:
        """Whether a rotation was cut off, or the server has asked for one."""
        return (self.path / "device.next.key").exists() or self.store.setting("rotation") == "due"

    def enrol(self, server: str, trusted: str, counter: ByteCounter) -> str:
        """Announce the device's key to a server; harmless if done before. Returns the device's id.

        trusted: the public release key, hex, which bundles must be signed with from now on; or the text of a root
        document (`trust`), which says whose bundles are believed from now on.

        Raises:
            InputError: not a key or an address. TrustError: a root that its own keys have not signed. TransportError:
            the server cannot be reached or refuses.
        """
        root = trusted.encode() if trusted.lstrip().startswith("{") else b""
        if root:
            self._start_trust(root)
            trusted = self.store.setting("trusted") or ""
        else:
            trusted = check_public_key(trusted.strip())
            for name in ("root.json", "bundles.json"):
                (self.path / "trust" / name).unlink(missing_ok=True)
        from device_runtime.connection import Address
        from device_runtime.transport import Transport

        signer = self.signer()
        device = self._id_of(signer, Address.parse(server).url)
        message = Enrolment(public_key=signer.public, capability=capability(installed()))
        with Transport(server, counter, signer=signer, device=device, ca_file=self._ca_file) as transport:
            answer = transport.request(
                "POST",
                "/v1/devices",
                to_json(message),
                label="enrol",
                accept="application/json",
                accept_status=(200, 201),
            )
            found = from_json(answer.body, Enrolled, "the answer to the enrolment").device
            if found != device:
                raise InputError(
                    f"the server knows this key as device {found}, but it is {device}: update the older side"
                )
            self.store.set(server=transport.base_url, trusted=trusted, device=device)
        return device

    @property
    def _ca_file(self) -> Path | None:
        path = self.path / "ca.pem"
        return path if path.exists() else None

    # -- what serves --------------------------------------------------------------------------------------------

    def manifest(self, ref: BundleRef | None = None, trusted: str | None = None) -> Manifest:
        """The manifest of a bundle whose blob is held; by default of the one that serves. Verified anew each time.

        trusted: the public key that must have signed it; by default `self.trusted`.

        Raises:
            InputError: no bundle has been pulled. TrustError: it is damaged.
        """
        if ref is None:
            serving = self.store.bundle()
            if serving is None:
                raise InputError(f"{self.path} holds no bundle yet; run `coda device run` first")
            ref = serving[0]
        path = self.blobs.path(ref.manifest)
        try:
            stored = path.read_bytes()
        except OSError as error:
            raise StoreError(
                f"cannot read the manifest {path}: {error.strerror}; run a round to pull it again"
            ) from None
        return open_manifest(ref, stored, self.trusted if trusted is None else trusted)

    def model(self, engine: Engine) -> Model:
        """The serving bundle on an engine."""
        return Model.open(self.manifest(), engine, self.blobs)

    def active_weights(self, model: Model) -> Weights:
        """The personal weights that serve, if they belong to this bundle; else the bundle's own."""
        found = self.store.weights()
        if found is None or found[1] != model.manifest.version:
            return model.base
        path = self._weights_path(found[0])
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreError(f"cannot read the weights {path}: {error.strerror}; {self._repair}") from None
        try:
            return Weights.from_tensors(read_tensors(data, str(path)), found[0])
        except WireError as error:
            raise StoreError(f"{error}; {self._repair}") from None

    def judged_weights(self, model: Model) -> Weights:
        """What the next weights are compared with: those that serve, as they were before they learned from held-out
        samples, which would speak for them. Where these cannot be read, those that serve; the next round mends it."""
        active = self.active_weights(model)
        if active.version == model.base.version:
            return active
        try:
            data = self._judged_path(active.version).read_bytes()
            return Weights.from_tensors(read_tensors(data, "judged weights"), active.version)
        except (OSError, WireError):
            return active

    @property
    def _repair(self) -> str:
        return f"`coda device repair --home {self.path}` lets the bundle's own serve"

    def place_weights(self, version: str, source: Path, judged: Path | None = None) -> None:
        """Move a file of weights to where it can serve, without writing it again; harmless if done before.

        They serve once the store says so. judged: the same weights before they learned from held-out samples, if they
        did. Raises: StoreError: the disk refused, or the file is gone.
        """
        for path, target in ((judged, self._judged_path(version)), (source, self._weights_path(version))):
            if path is not None and not target.exists():
                move_durably(path, target)

    def drop_superseded(self) -> None:
        """Remove weights that do not serve, and never will."""
        serving = self.store.weights()
        for path in (self.path / "weights").glob("*.safetensors"):
            if serving is None or path not in (self._weights_path(serving[0]), self._judged_path(serving[0])):
                path.unlink(missing_ok=True)

    def drop_other_blobs(self, ref: BundleRef, manifest: Manifest) -> int:
        """Remove the files of all bundles but this one; those that both have stay. Returns how many went.

        Also of other engines than the one in use: the files that the manifest names for any engine stay.
        """
        files = [manifest.weights, manifest.classifier]
        files += [made.file for graph in manifest.graphs.values() for made in graph.files.values()]
        files += [shard for table in manifest.tables.values() for shard in table.shards]
        keep = {ref.manifest, *(name for file in files for name in (file.sha256, file.raw_sha256) if name)}
        gone = 0
        for folder in (self.blobs.folder, self.blobs.folder / "unpacked"):
            for path in folder.iterdir() if folder.is_dir() else ():
                if path.is_file() and path.name.removeprefix(".part-") not in keep:
                    path.unlink(missing_ok=True)
                    gone += 1
        return gone

    def _judged_path(self, version: str) -> Path:
        return self.path / "weights" / f"{version}.judged.safetensors"

    def _weights_path(self, version: str) -> Path:
        return self.path / "weights" / f"{version}.safetensors"
