"""Cursors: only a position that was signed can be read back."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from rowcast.bridge.cursor import CursorKey, Position

KEY = CursorKey(b"k" * 64)


@st.composite
def positions(draw: st.DrawFn) -> Position:
    xmin = draw(st.integers(3, 2**62))
    running = sorted(draw(st.sets(st.integers(xmin, xmin + 10_000), max_size=50)))
    xmax = max([xmin, *(x + 1 for x in running)]) + draw(st.integers(0, 1000))
    moment = datetime.fromtimestamp(draw(st.integers(0, 4_000_000_000_000)) / 1000, UTC)
    snapshot = f"{xmin}:{xmax}:{','.join(map(str, running))}"
    return Position(snapshot, draw(st.uuids()), moment)


@given(positions(), st.text())
def test_a_cursor_reads_back_as_the_position_it_was_made_of(
    position: Position, subject: str
) -> None:
    read = KEY.read(KEY.sign(position, subject), subject)
    assert read is not None
    assert (read.snapshot, read.boot) == (position.snapshot, position.boot)
    assert abs((read.issued_at - position.issued_at).total_seconds()) < 0.002
    assert read.issued_at <= position.issued_at or read.issued_at == position.issued_at


@given(positions(), st.text(), st.text())
def test_a_cursor_is_good_for_its_own_subject_and_key_only(
    position: Position, subject: str, other: str
) -> None:
    cursor = KEY.sign(position, subject)
    assert CursorKey(b"x" * 64).read(cursor, subject) is None
    if other != subject:
        assert KEY.read(cursor, other) is None


@given(positions(), st.data())
def test_a_cursor_with_any_bit_changed_is_invalid(position: Position, data: st.DataObject) -> None:
    cursor = KEY.sign(position, "alice")
    raw = bytearray(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert KEY.read(base64.urlsafe_b64encode(raw).decode(), "alice") is None


@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda b: b.decode("latin-1")))
def test_other_text_is_invalid_and_raises_no_error(rubbish: str) -> None:
    assert KEY.read(rubbish, "alice") is None


@given(st.binary(max_size=100))
def test_signed_bytes_of_another_form_raise_no_error(packed: bytes) -> None:
    """Another version of rowcast may have signed something else with the same key."""
    tag = KEY._tag(packed, "alice")  # noqa: SLF001
    cursor = base64.urlsafe_b64encode(tag + packed).decode()
    read = KEY.read(cursor, "alice")
    assert read is None or read.pack()


def test_many_running_transactions_take_about_a_byte_each() -> None:
    running = ",".join(str(x) for x in range(1000, 3000, 2))
    position = Position(f"1000:3000:{running}", UUID(int=1), datetime.now(UTC))
    assert len(KEY.sign(position, "alice")) < 1500
