"""Operators and their sessions, over SQLite and over PostgreSQL alike."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine, text

from cloud.catalog import Operator
from cloud.catalog.operators import SESSION_S
from device_runtime.errors import InputError


def test_a_token_says_who_and_what_they_may(catalog, url):
    token = catalog.operators.add("ada", "releaser", now=1.0)
    catalog.operators.add("bob", "viewer", now=1.0)
    assert catalog.operators.by_token(token) == Operator("ada", "releaser")
    assert catalog.operators.by_token(token[:-1]) is None
    assert [found.name for found in catalog.operators.all()] == ["ada", "bob"]
    engine = create_engine(url)
    with engine.connect() as db:
        kept = str(db.execute(text("SELECT * FROM operators")).all())
    engine.dispose()
    assert token not in kept


def test_a_session_ends_with_its_time_its_token_and_by_logging_out(catalog):
    token = catalog.operators.add("ada", "viewer", now=1.0)
    assert catalog.operators.log_in("wrong", now=1.0) is None
    cookie = catalog.operators.log_in(token, now=1.0)
    assert catalog.operators.by_cookie(cookie, now=1.0 + SESSION_S) == Operator("ada", "viewer")
    assert catalog.operators.by_cookie(cookie, now=2.0 + SESSION_S) is None
    assert catalog.operators.by_cookie(token, now=1.0) is None, "a token is no cookie"
    newer = catalog.operators.add("ada", "releaser", now=2.0)
    assert catalog.operators.by_cookie(cookie, now=3.0) is None and catalog.operators.by_token(token) is None
    cookie = catalog.operators.log_in(newer, now=3.0)
    catalog.operators.log_out(cookie)
    assert catalog.operators.by_cookie(cookie, now=3.0) is None
    cookie = catalog.operators.log_in(newer, now=3.0)
    assert catalog.operators.remove("ada") and not catalog.operators.remove("ada")
    assert catalog.operators.by_cookie(cookie, now=3.0) is None


@pytest.mark.parametrize(("name", "role"), [("", "viewer"), ("a b", "viewer"), ("gate", "releaser"), ("ada", "root")])
def test_names_and_roles_that_cannot_be_are_refused(catalog, name, role):
    with pytest.raises(InputError, match=r"not an operator's name|no role"):
        catalog.operators.add(name, role, now=1.0)
