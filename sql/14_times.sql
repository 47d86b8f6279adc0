-- Times as every JSON of ours has them.

-- Milliseconds and Z, as JavaScript writes it and as the bridge does.
create or replace function rowcast.iso_time(p_at timestamptz)
returns text
language sql
stable
parallel safe
return to_char(p_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"');

comment on function rowcast.iso_time(timestamptz) is
'A time as ISO 8601 in UTC with milliseconds.';
