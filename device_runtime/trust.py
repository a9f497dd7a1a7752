"""Who may say what a device runs: signed documents with roles, after The Update Framework (TUF).

Pure: bytes and a time in, verdict out.

root      names the keys of every role, its own included; signed by a threshold of keys that are kept offline. A newer
          root must be signed by the threshold of the one before and by its own, and follow it without a gap.
bundles   offline too: lists the bundles that devices may run, by version and hash of the manifest; expires.
online    the server's key. It signs, for one device's one request, which of these bundles that device should have now,
          and which root and list are the newest; a statement holds for some days (TUF's snapshot and timestamp).

What is refused, and by what: an arbitrary bundle (not on the list, or not signed by a bundle key), an expired document,
a list or root older than one that was seen (rollback), a list or bundle other than the one that the online key names
(mix and match), a statement for another device or another request (replay), and silence for longer than a statement
holds (freeze). An older bundle is taken only while it is on the newest list and an online key says so: that is how a
release is rolled back. A stolen online key can therefore only choose among listed bundles, until a new root drops it.

Not here: fetching and keeping (`pull`, `home`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from device_runtime.errors import TrustError
from device_runtime.identity import Signer, check_public_key, key_id, verify
from device_runtime.messages import Announcement, BundleRef, to_json

FORMAT = 1
MAX_DOCUMENT = 1 << 20
"""Bytes of a signed document, at most."""
MAX_ROOTS = 64
"""Roots that a device follows at once, at most."""
LONGEST_S = 31 * 86_400
"""A statement of the online key holds no longer than this, whatever it says."""
ROLES = ("root", "bundles", "online")


class Role(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """keys: ids of those that may sign. threshold: of them that must."""

    keys: tuple[str, ...]
    threshold: int = 1


class Root(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """keys: id -> Ed25519 public key, 64 hex digits. roles: by the names in `ROLES`. expires: seconds since 1970."""

    format: int = FORMAT
    version: int
    expires: int
    keys: dict[str, str]
    roles: dict[str, Role]

    def public(self, role: str) -> dict[str, str]:
        """Id -> key, of those that may sign for a role."""
        return {name: self.keys[name] for name in self.roles[role].keys}


class Listing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """bundles: version -> sha256 of the manifest's blob, hex. expires: seconds since 1970."""

    format: int = FORMAT
    version: int
    expires: int
    bundles: dict[int, str]


class Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """signatures: key id -> Ed25519 over `signed_text` of the bytes of `signed`, exactly as they stand."""

    signed: msgspec.Raw
    signatures: dict[str, str] = {}


_Document = TypeVar("_Document", Root, Listing)


def signed_text(role: str, data: bytes) -> bytes:
    """What a signature covers: the role is in it, so that no document passes for one of another role."""
    return f"coda-{role}\n".encode() + data


def unsigned(document: Root | Listing) -> bytes:
    return to_json(Signed(msgspec.Raw(to_json(document))))


def with_signature(data: bytes, role: str, signer: Signer) -> bytes:
    """The document with one more signature. Raises: TrustError: it is none."""
    signed = _opened(data, role)
    signature = signer.sign(signed_text(role, bytes(signed.signed)))
    return to_json(Signed(signed.signed, signed.signatures | {key_id(signer.public): signature}))


def parse(data: bytes, role: str) -> Root | Listing:
    """A document without asking who signed it. Raises: TrustError: it is none."""
    signed = _opened(data, role)
    return _content(signed, role, Root) if role == "root" else _content(signed, role, Listing)


class TrustedSet:
    """What a device trusts at a moment: a root, and the newest list that it has seen.

    Raises (from every method):
        TrustError: says which rule the document breaks. Nothing has changed then.
    """

    def __init__(self, root: bytes, listing: bytes | None = None) -> None:
        """root: as the device was given it, or as an earlier set accepted it: it is taken as it is, however old.
        listing: that an earlier set accepted."""
        self.root, self.root_data = _checked_root(_content(_opened(root, "root"), "root", Root)), root
        self.listing: Listing | None = None
        self.listing_data = b""
        if listing is not None:
            self.listing = _content(_opened(listing, "bundles"), "bundles", Listing)
            self.listing_data = listing

    def check_self_signed(self) -> None:
        """That the root's own keys have signed it: of one that came by hand, this finds a mistake of the publisher."""
        _require(_opened(self.root_data, "root"), "root", self.root)

    def update_root(self, data: bytes) -> None:
        """Take the root that follows. Its expiry is checked when it is used: a device that was away for long must be
        able to follow roots that have expired to the one that has not."""
        signed = _opened(data, "root")
        following = _checked_root(_content(signed, "root", Root))
        if following.version != self.root.version + 1:
            raise TrustError(
                f"root {following.version} does not follow root {self.root.version}, which is trusted here"
            )
        _require(signed, "root", self.root)
        _require(signed, "root", following)
        if set(following.public("bundles").values()) != set(self.root.public("bundles").values()):
            # whoever held a key that was dropped may have made lists of any version
            self.listing, self.listing_data = None, b""
        self.root, self.root_data = following, data

    def check_root(self, now: float) -> None:
        """That the root holds now."""
        if now > self.root.expires:
            raise TrustError(
                f"root {self.root.version} has expired, and its successor did not come: nothing new is taken. Tell the "
                "publisher, and check this device's clock"
            )

    def update_listing(self, data: bytes, announced: Announcement, now: float) -> None:
        """Take the list that the online key names."""
        self.check_root(now)
        if hashlib.sha256(data).hexdigest() != announced.listing:
            raise TrustError("the list of bundles is another one than the server's statement names")
        found = check_listing(self.root, data, now)
        held = self.listing
        if held is not None and found.version < held.version:
            raise TrustError(f"the list of bundles has version {found.version}; this device has seen {held.version}")
        if held is not None and found.version == held.version and found != held:
            raise TrustError(f"there are two lists of bundles of version {found.version}")
        self.listing, self.listing_data = found, data

    def has_listing(self, announced: Announcement) -> bool:
        """Whether the list that the online key names is at hand."""
        return bool(self.listing_data) and hashlib.sha256(self.listing_data).hexdigest() == announced.listing

    def check_statement(self, text: bytes, signature: str) -> None:
        """That an online key made a statement. text: that its signature covers, the request's nonce included."""
        for public in self.root.public("online").values():
            try:
                verify(public, text, signature)
                return
            except TrustError:
                continue
        raise TrustError("the server's statement is not signed by a key that the root names for it")

    def check_announcement(self, announced: Announcement, device: str, now: float) -> None:
        """That what an online key has stated holds for this device, now."""
        self.check_root(now)
        if announced.device != device:
            raise TrustError("the server's statement is for another device")
        if announced.root < self.root.version:
            raise TrustError(f"the server knows root {announced.root}; this device has seen {self.root.version}")
        if not now < announced.expires <= now + LONGEST_S:
            raise TrustError("the server's statement has expired, or holds for longer than any may")

    def check_bundle(self, ref: BundleRef, now: float) -> str:
        """That a bundle may be run. Returns the public key that its manifest must be signed with."""
        self.check_root(now)
        if self.listing is not None:
            _check_unexpired(self.listing, now)
        if self.listing is None or self.listing.bundles.get(ref.version) != ref.manifest:
            raise TrustError(f"bundle {ref.version} is not on the publisher's list, or another one of this version is")
        public = self.root.public("bundles").get(ref.key)
        if public is None:
            raise TrustError(f"bundle {ref.version} is signed by key {ref.key}, which the root does not name for that")
        return public


def check_listing(root: Root, data: bytes, now: float) -> Listing:
    """The list, if the root's bundle keys have signed it and it holds. Raises: TrustError."""
    signed = _opened(data, "bundles")
    _require(signed, "bundles", root)
    found = _content(signed, "bundles", Listing)
    _check_unexpired(found, now)
    return found


def role_of(data: bytes) -> str:
    """Which document this is. Raises: TrustError: none."""
    for role in ("root", "bundles"):
        try:
            parse(data, role)
        except TrustError:
            continue
        return role
    raise TrustError("this is neither a root nor a list of bundles")


def _check_unexpired(listing: Listing, now: float) -> None:
    if now > listing.expires:
        raise TrustError(
            f"the publisher's list of bundles, version {listing.version}, has expired: nothing new is taken. Tell the "
            "publisher, and check this device's clock"
        )


def _opened(data: bytes, role: str) -> Signed:
    if len(data) > MAX_DOCUMENT:
        raise TrustError(f"a {role} document has at most {MAX_DOCUMENT} bytes; this one has {len(data)}")
    try:
        return msgspec.json.decode(data, type=Signed)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise TrustError(f"this is no signed {role} document") from None


def _content(signed: Signed, role: str, kind: type[_Document]) -> _Document:
    try:
        found = msgspec.json.decode(signed.signed, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TrustError(f"the {role} document does not decode: {error}") from None
    if found.format != FORMAT or found.version < 1:
        raise TrustError(
            f"the {role} document has format {found.format} and version {found.version}; update this program"
        )
    return found


def _checked_root(root: Root) -> Root:
    for name, public in root.keys.items():
        if check_public_key(public) != public or key_id(public) != name:
            raise TrustError(f"the root names a key by {name[:16]}, which is not its id")
    for name in ROLES:
        role = root.roles.get(name)
        if role is None or not set(role.keys) <= set(root.keys) or not 1 <= role.threshold <= len(set(role.keys)):
            raise TrustError(
                f"the root gives the role {name!r} no keys, unknown ones, or a threshold they cannot reach"
            )
    return root


def _require(signed: Signed, name: str, root: Root) -> None:
    """Enough different keys of a role have signed."""
    text, role = signed_text(name, bytes(signed.signed)), root.roles[name]
    good = sum(_is_by(public, text, signed.signatures.get(key, "")) for key, public in root.public(name).items())
    if good < role.threshold:
        raise TrustError(
            f"{good} of the keys that root {root.version} names for {name} have signed; it takes {role.threshold}"
        )


def _is_by(public: str, text: bytes, signature: str) -> bool:
    try:
        verify(public, text, signature)
    except TrustError:
        return False
    return True


def make_root(
    version: int, expires: int, *, root: Iterable[str], threshold: int, bundles: Iterable[str], online: Iterable[str]
) -> Root:
    """A root of these public keys. Raises: InputError: not a key. TrustError: a threshold that cannot be reached."""
    groups = {"root": list(root), "bundles": list(bundles), "online": list(online)}
    keys = {key_id(check_public_key(public)): public for group in groups.values() for public in group}
    roles = {name: Role(tuple(key_id(public) for public in group)) for name, group in groups.items()}
    roles["root"] = Role(roles["root"].keys, threshold)
    return _checked_root(Root(version=version, expires=expires, keys=keys, roles=roles))
