"""A server's folder, with the embedded defaults: SQLite, local files, a pool on disk.

HOME/server.toml    settings that are not the defaults; see `cloud.settings`
HOME/answer.key     signs per-user answers; every manifest names its public half
HOME/salt           makes pseudonyms of contributors; without it they cannot be linked
HOME/watch.token    lets operators see figures from elsewhere
HOME/catalog.db     devices, releases, reports, unless the settings name another database
HOME/blobs/         bundle files by content hash; a cache of them where the settings name another place
HOME/pool/ENCODER/  samples without identities, embedded by that encoder
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import zstandard

from cloud.blobs import shared_blobs
from cloud.catalog import Catalog
from cloud.datasets import Dataset
from cloud.deltas import RECENT, make_deltas
from cloud.encoding import Encoder
from cloud.pool import Part, Pool, Tokens
from cloud.releases import check_listed
from cloud.settings import load_settings
from device_runtime.bundle import FileRef, Manifest, open_manifest, parse_manifest, unpack_file
from device_runtime.errors import InputError, StoreError, TrustError, WireError
from device_runtime.identity import Signer, check_public_key
from device_runtime.messages import BundleRef
from device_runtime.stream import samples
from device_runtime.trust import TrustedSet, check_listing, role_of

SEGMENT = 250_000
"""Samples in a segment of the pool, at most."""
log = logging.getLogger("coda.home")
_SALT_BYTES = 32


class ServerHome:
    """Use it in a `with`, or close it.

    create: make the folder and its keys where there are none.

    Raises (from the constructor):
        InputError: there is no server's home, and none is to be made.
        StoreError: the folder or one of its files cannot be used.
    """

    def __init__(self, path: Path, create: bool = True) -> None:
        self.path = path
        if not create and not (path / "answer.key").exists():
            raise InputError(f"{path} is not a server's home; make one with `coda release keys --home {path}`")
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._salt = _salt(path / "salt")
        except OSError as error:
            raise StoreError(f"the server's home {path} cannot be used: {error.strerror}") from None
        self.settings = load_settings(path)
        self.answer_signer = Signer.open_or_create(path / "answer.key")
        self.catalog = Catalog(self.settings.catalog or f"sqlite:///{(path / 'catalog.db').absolute()}")
        self.blobs = shared_blobs(path / "blobs", self.settings.blobs)

    def __enter__(self) -> ServerHome:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.catalog.close()

    def release(self, version: int | None = None) -> tuple[BundleRef, Manifest]:
        """The current release, or the bundle of a version. Raises: InputError: there is none."""
        ref = self.catalog.current() if version is None else self.catalog.bundle(version)
        if ref is None and version is not None:
            raise InputError(f"{self.path} has no bundle of version {version}; `coda release add` takes one in")
        if ref is None:
            raise InputError(f"{self.path} has no release yet; run `coda release publish BUNDLE --home {self.path}`")
        # its signature was checked when it was published; what lies here is the operator's own
        stored = self.blobs.read(_manifest_file(ref))
        return ref, parse_manifest(_unpacked(stored), ref.version)

    @property
    def watch_token(self) -> str:
        """What operators prove themselves with, made when first asked for. Raises: StoreError."""
        path = self.path / "watch.token"
        try:
            _make_once(path, secrets.token_urlsafe(24).encode() + b"\n")
            return path.read_text().strip()
        except OSError as error:
            raise StoreError(f"cannot use {path}: {error.strerror}") from None

    def pool(self, manifest: Manifest) -> Pool:
        return Pool(self.path / "pool" / manifest.encoder, manifest.schema, manifest.width)

    def pools(self) -> list[Pool]:
        """The pools of every encoder that was ever released: whoever is erased must go from all."""
        found = {}
        for ref in (release.ref for release in self.catalog.releases()):
            manifest = parse_manifest(_unpacked(self.blobs.read(_manifest_file(ref))), ref.version)
            if (self.path / "pool" / manifest.encoder).exists():
                found[manifest.encoder] = manifest
        return [self.pool(manifest) for manifest in found.values()]

    def contributor(self, name: str) -> int:
        """The pseudonym under which a contributor's samples lie in the pool: never 0, and the same each time."""
        digest = hmac.digest(self._salt, name.encode(), "sha256")
        return int.from_bytes(digest[:8], "little") or 1


def publish(home: ServerHome, bundle: Path, staged: bool = False) -> Manifest:
    """Verify every file of a bundle folder, take it in, and make it the current release, at once and for everyone.

    staged: only take it in; a rollout brings it to devices.

    Raises:
        InputError: not a bundle, for another server, not newer than those that are here, or a rollout to everyone is on
        its way. TrustError: a signature or hash is wrong. Nothing has changed then.
    """
    ended = [] if staged else _make_way(home)
    try:
        ref = msgspec.json.decode((bundle / "bundle.json").read_bytes(), type=BundleRef)
        trusted = check_public_key((bundle / "release.pub").read_text().strip())
        stored = (bundle / "blobs" / ref.manifest).read_bytes()
    except (OSError, ValueError, InputError) as error:  # msgspec's and Unicode's errors are ValueErrors
        raise InputError(f"{bundle} is not a whole bundle folder ({error}); make one with `coda export`") from None
    manifest = open_manifest(ref, stored, trusted)
    if manifest.answer_key != home.answer_signer.public:
        raise InputError(
            f"the bundle names another server's answer key; export it again with "
            f"--answer-key $(coda release keys --home {home.path})"
        )
    before = sorted((release.ref for release in home.catalog.releases()), key=lambda ref: ref.version)
    newest = before[-1].version if before else 0
    if ref.version <= newest:
        raise InputError(
            f"the bundle has version {ref.version}, but {newest} is out already; "
            f"export with --bundle-version {newest + 1}"
        )
    blobs = {ref.manifest: stored}
    for file in _files(manifest):
        try:
            data = (bundle / "blobs" / file.sha256).read_bytes()
        except OSError:
            raise TrustError(f"{bundle} lacks the blob {file.sha256[:12]}… that its manifest names") from None
        raw = unpack_file(file, data)
        if file.raw_sha256 and hashlib.sha256(raw).hexdigest() != file.raw_sha256:
            raise TrustError(f"the manifest states another hash of the file in blob {file.sha256[:12]}… than it has")
        blobs[file.sha256] = data
    for sha256, data in blobs.items():
        if not _holds(home.blobs.path(sha256), data):
            home.blobs.write(sha256, data)
    if not staged:
        check_listed(home.catalog, ref)
    for other in before[-RECENT:]:
        try:
            make_deltas(manifest, home.release(other.version)[1], home.blobs)
        except (StoreError, TrustError, WireError) as error:
            log.warning("devices with bundle %d will fetch whole files: %s", other.version, error)
    home.catalog.release(manifest.name, ref, time.time(), staged)
    home.catalog.rollouts.retire(ended)
    return manifest


def add_document(home: ServerHome, data: bytes, now: float) -> tuple[str, int]:
    """Take in a root or a list of bundles of the publisher's, if devices would. Returns its role and version.

    Raises:
        InputError: it names another online key than this server's. TrustError: devices would refuse it.
    """
    log, role = home.catalog.rollouts, role_of(data)
    newest = log.newest_documents()
    if role == "root":
        root = newest.get("root")
        trusted = TrustedSet(root[1] if root else data)
        if root:
            trusted.update_root(data)
        trusted.check_self_signed()
        trusted.check_root(now)
        if home.answer_signer.public not in trusted.root.public("online").values():
            raise InputError(
                "the root does not name this server's key for `online`: that is what `coda release keys` prints"
            )
        version = trusted.root.version
    else:
        if "root" not in newest:
            raise InputError("a list of bundles is signed by keys that a root names; take in the root first")
        found = check_listing(TrustedSet(newest["root"][1]).root, data, now)
        if "bundles" in newest and found.version <= newest["bundles"][0]:
            raise InputError(f"list {found.version} is not newer than {newest['bundles'][0]}, which devices have seen")
        version = found.version
    log.add_document(role, version, data, now)
    return role, version


def _make_way(home: ServerHome) -> list[str]:
    """The rollouts to everyone that have ended, and would keep a newer release from its devices.

    Raises:
        InputError: one has not ended.
    """
    universal = [course for course in home.catalog.rollouts.policy().courses.values() if course.universal]
    for course in universal:
        if course.live:
            raise InputError(
                f"release {course.name} is {course.rollout.state} and means every device; complete it or roll it back "
                "first, or stage this bundle with `coda release add`"
            )
    return [course.name for course in universal]


def ingest(
    home: ServerHome,
    dataset: Dataset,
    progress: Callable[[int, int], None] = lambda done, total: None,
    version: int | None = None,
) -> int:
    """Embed a data set's samples by a bundle's encoder and add them to that encoder's pool. Returns how many are in it
    of that data set: what an earlier run added, whether it was killed or not, is not added again.

    dataset: its vocabulary must be that of the bundle's model. version: of the bundle; None: the current one.

    Raises:
        InputError: there is no release, or an item is not in its vocabulary.
    """
    _, manifest = home.release(version)
    if len(dataset.items) != manifest.tables["item"].rows:
        raise InputError(
            f"the data set has {len(dataset.items)} items, the released model {manifest.tables['item'].rows}: "
            "ingest the data that the model was trained on"
        )
    encoder, pool = Encoder(manifest, home.blobs), home.pool(manifest)
    events = dataset.events
    everything = samples(events, manifest.schema)
    tokens: Tokens = np.array([home.contributor(f"user:{name}") for name in dataset.users], np.uint64)
    total = len(everything)
    digest = hashlib.sha256(tokens.tobytes())
    for column in (events.contributor, events.item, events.timestamp, events.label, events.observed):
        digest.update(np.ascontiguousarray(column).tobytes())
    source = digest.hexdigest()
    for start in range(pool.ingested(source), total, SEGMENT):
        stop = min(start + SEGMENT, total)
        part = slice(start, stop)
        embedded = []
        for at in range(start, stop, 8192):
            embedded.append(encoder.encode(everything.take(slice(at, min(at + 8192, stop)))))
            progress(min(at + 8192, total), total)
        vectors = np.concatenate(embedded)
        owners = tokens[events.contributor[part]]
        pool.append(everything.take(part), events.timestamp[part], owners, vectors, part=Part(source, start, stop))
    return total


def _manifest_file(ref: BundleRef) -> FileRef:
    return FileRef(ref.manifest, ref.size, ref.size, "none")


def _files(manifest: Manifest) -> list[FileRef]:
    graphs = [file.file for entry in manifest.graphs.values() for file in entry.files.values()]
    shards = [shard for table in manifest.tables.values() for shard in table.shards]
    return [manifest.weights, manifest.classifier, *graphs, *shards]


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except OSError:
        return False


def _salt(path: Path) -> bytes:
    """The salt, made when there is none: whole or not at all, for pseudonyms under an empty one could be guessed."""
    _make_once(path, secrets.token_bytes(_SALT_BYTES))
    salt = path.read_bytes()
    if len(salt) != _SALT_BYTES:
        raise StoreError(f"{path} is damaged: it should have {_SALT_BYTES} bytes. Restore it from a copy")
    return salt


def _make_once(path: Path, secret: bytes) -> None:
    """Write a file where there is none, readable by its owner only. Raises: OSError."""
    if not path.exists():
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):  # another process was first: what it wrote counts
                os.link(file.name, path)


def _unpacked(stored: bytes) -> bytes:
    data: bytes = zstandard.ZstdDecompressor().decompress(stored, max_output_size=16 << 20)
    return data
