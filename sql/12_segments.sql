-- Parts of a name, for policies. NULL instead of an error everywhere: a cast that fails in one
-- policy would make every other channel fail with it, because all policies of a table run.
--
-- On realtime_messages only the forms with a name: a form without arguments in a scalar
-- sub-select is evaluated once per statement, and a two-row INSERT then publishes to a channel
-- that was never checked.

-- For policies on realtime_messages, with the channel_name of the row.
create or replace function rowcast.segment(p_name text, p_n integer)
returns text
language sql
immutable
parallel safe
return case when p_n <> 0 then nullif(split_part(p_name, ':', p_n), '') end;

comment on function rowcast.segment(text, integer) is
'The n-th segment of a name, counted from 1, or from the end when negative; NULL when absent.';

-- To compare with a uuid column whose index is then used.
create or replace function rowcast.segment_uuid(p_name text, p_n integer)
returns uuid
language sql
immutable
parallel safe
return case
    when rowcast.segment(p_name, p_n) ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$'
        then rowcast.segment(p_name, p_n)::uuid
end;

comment on function rowcast.segment_uuid(text, integer) is
'The n-th segment as uuid, NULL when it is none.';

-- At most 18 digits: every such number is a bigint.
create or replace function rowcast.segment_int(p_name text, p_n integer)
returns bigint
language sql
immutable
parallel safe
return case
    when rowcast.segment(p_name, p_n) ~ '^-?[0-9]{1,18}$'
        then rowcast.segment(p_name, p_n)::bigint
end;

comment on function rowcast.segment_int(text, integer) is
'The n-th segment as bigint, NULL when it is none.';

-- For policies on realtime_channels, where there is one name per question.
create or replace function rowcast.segment(p_n integer)
returns text
language sql
stable
parallel safe
return rowcast.segment(rowcast.channel_name(), p_n);

comment on function rowcast.segment(integer) is
'The n-th segment of the name being asked for. For policies on realtime_channels only.';

-- The same as uuid, for policies on realtime_channels.
create or replace function rowcast.segment_uuid(p_n integer)
returns uuid
language sql
stable
parallel safe
return rowcast.segment_uuid(rowcast.channel_name(), p_n);

comment on function rowcast.segment_uuid(integer) is
'The n-th segment of the name being asked for as uuid. For policies on realtime_channels only.';

-- The same as bigint, for policies on realtime_channels.
create or replace function rowcast.segment_int(p_n integer)
returns bigint
language sql
stable
parallel safe
return rowcast.segment_int(rowcast.channel_name(), p_n);

comment on function rowcast.segment_int(integer) is
'The n-th segment of the name being asked for as bigint. For policies on realtime_channels only.';
