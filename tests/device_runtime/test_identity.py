import pytest

from device_runtime.errors import InputError, StoreError, TrustError
from device_runtime.identity import (
    Signer,
    check_public_key,
    device_id,
    key_id,
    parse_authorization,
    request_text,
    verify,
)


def test_a_key_is_made_once_and_only_its_owner_can_read_it(tmp_path):
    path = tmp_path / "keys" / "device.key"
    signer = Signer.create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Signer.open_or_create(path).public == signer.public
    with pytest.raises(StoreError, match="never overwritten"):
        Signer.create(path)


def test_a_broken_key_file_is_refused_without_quoting_it(tmp_path):
    path = tmp_path / "device.key"
    path.write_text("0123secret")
    with pytest.raises(StoreError, match="64 hex digits") as error:
        Signer.open(path)
    assert "secret" not in str(error.value)
    with pytest.raises(StoreError, match="cannot read"):
        Signer.open(tmp_path / "absent")


def test_a_request_verifies_as_it_was_and_not_otherwise(tmp_path):
    signer = Signer.create(tmp_path / "key")
    device = device_id(signer.public)
    header = signer.authorization(device, "POST", "/v1/match", b"body", now=1234.9)
    claimed, at, nonce, signature = parse_authorization(header)
    assert (claimed, at) == (device, 1234)
    verify(signer.public, request_text("POST", "/v1/match", at, nonce, b"body"), signature)
    for other in [
        request_text("GET", "/v1/match", at, nonce, b"body"),
        request_text("POST", "/v1/reports", at, nonce, b"body"),
        request_text("POST", "/v1/match", at + 1, nonce, b"body"),
        request_text("POST", "/v1/match", at, "0" * 16, b"body"),
        request_text("POST", "/v1/match", at, nonce, b"body!"),
    ]:
        with pytest.raises(TrustError, match="does not verify"):
            verify(signer.public, other, signature)
    assert parse_authorization(signer.authorization(device, "GET", "/", b""))[2] != nonce


@pytest.mark.parametrize("header", ["", "Bearer x", "CoDA a:b:c:d", "CoDA " + "0" * 32 + ":1:" + "0" * 16 + ":short"])
def test_other_headers_are_refused(header):
    with pytest.raises(TrustError, match="not of the form"):
        parse_authorization(header)


def test_names_follow_from_keys(tmp_path):
    one, other = Signer.create(tmp_path / "a").public, Signer.create(tmp_path / "b").public
    assert len(key_id(one)) == 16 and len(device_id(one)) == 32
    assert key_id(one) != key_id(other) and device_id(one) != device_id(other)
    assert check_public_key(one.upper()) == one
    with pytest.raises(InputError, match="64 hex digits; given: 'zz'"):
        check_public_key("zz")
    with pytest.raises(TrustError):
        verify("zz", b"", "00" * 64)
