"""Workers over one pool on disk: what one takes in, the others match."""

from __future__ import annotations

from dataclasses import replace

from cloud.matching import FaissStore
from cloud.pool import Pool
from device_runtime.wire import decode_answer, encode_contribution
from tests.cloud.http.conftest import SCHEMA, WIDTH, Peer, query, some_samples


def test_what_one_worker_takes_in_the_others_match_at_once(serve, services):
    second = Pool(services.pool.folder, SCHEMA, WIDTH)
    one, other = serve(), serve(pool=second, store=FaissStore(second))
    one.enrol()
    stranger = Peer(other.port, replace(services), services.blobs.folder)
    stranger.enrol()
    before = len(second)
    assert one.signed("POST", "/v1/contributions", encode_contribution(some_samples([5, 6, 7]))).status == 204
    answer = decode_answer(stranger.signed("POST", "/v1/match", query(limit=5000)).body, SCHEMA)
    assert len(answer.candidates) == before + 3
