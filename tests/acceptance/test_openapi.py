"""The OpenAPI document against the server: no undescribed answer, and no 5xx.

schemathesis generates valid and invalid requests from the document, the same in each run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies
from schemathesis.checks import positive_data_acceptance

from rowcast.bridge.rest.openapi import document
from rowcast.bridge.rest.routes import ROUTES
from support import pg
from support.bridge_process import Daemon, daemon, open_channels, token
from support.rest_client import ADMIN

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

# A name that fits the schema may be invalid: SQL decides, and JSON Schema cannot say all its rules.
EXCLUDED = [positive_data_acceptance]
SETTINGS = hypothesis.settings(
    max_examples=20,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)


SCHEMA = schemathesis.openapi.from_dict(document(ROUTES))
OPERATIONS = [result.ok() for result in SCHEMA.get_all_operations()]


@pytest.fixture(scope="module")
def bridge(module_database: pg.Database) -> Iterator[Daemon]:
    open_channels(module_database, "room:*")
    with daemon(module_database, frame_burst=1_000_000) as bridge:
        yield bridge


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_the_server_answers_as_the_document_says(
    bridge: Daemon, operation: Any, mode: schemathesis.GenerationMode
) -> None:
    keys = (ADMIN, token("alice"))

    @SETTINGS
    @hypothesis.given(
        case=operation.as_strategy(generation_mode=mode), key=strategies.sampled_from(keys)
    )
    def answers(case: schemathesis.Case, key: str) -> None:
        case.call_and_validate(
            base_url=bridge.url,
            headers={"Authorization": f"Bearer {key}"},
            excluded_checks=EXCLUDED,
        )

    try:
        answers()
    except hypothesis.errors.Unsatisfiable:
        # there is no invalid request where every value is valid
        assert mode is schemathesis.GenerationMode.NEGATIVE


def test_the_served_document_is_that_of_the_route_table(bridge: Daemon) -> None:
    served = schemathesis.openapi.from_url(f"{bridge.url}/api/realtime/openapi.json")
    assert served.raw_schema == SCHEMA.raw_schema


def test_the_bridge_logged_no_internal_error(bridge: Daemon) -> None:
    assert "internal_error" not in bridge.log
