-- Changes of the user's own tables as messages, without a trigger written by hand.

-- Subscribers see the listed columns of every row, whatever row level security the table has:
-- the policies on the channel alone decide which callers see them.
create or replace function rowcast.publish_row()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_new constant jsonb := case when tg_op <> 'DELETE' then to_jsonb(new) end;
    v_old constant jsonb := case when tg_op <> 'INSERT' then to_jsonb(old) end;
    v_columns constant text[] := nullif(tg_argv[1], '')::text[];
    v_channel text := '';
    v_before text;
    v_column text;
    v_value text;
begin
    -- Put together from left to right: a value that contains "{status}" is not filled in again.
    for v_before, v_column in
        select r.m[1], r.m[2] from regexp_matches(tg_argv[0], '(.*?)\{([^{}]+)\}', 'g') as r (m)
    loop
        v_value := coalesce(v_new, v_old) ->> v_column;
        if v_value is null then
            raise exception 'column "%" of %.% is null, so the channel "%" has no name',
                v_column, tg_table_schema, tg_table_name, tg_argv[0]
            using errcode = 'RCN02', hint = 'Name the channel by columns that are not null.';
        end if;
        -- One column is one segment: a ':' in the data must not reach another channel.
        if position(':' in v_value) > 0 then
            raise exception 'column "%" of %.% contains ":", which separates the segments of a channel',
                v_column, tg_table_schema, tg_table_name
            using errcode = 'RCN02', hint = 'Name the channel by a column without ":".';
        end if;
        v_channel := v_channel || v_before || v_value;
    end loop;
    v_channel := v_channel || regexp_replace(tg_argv[0], '^.*\{[^{}]+\}', '');
    if tg_argv[3]::boolean and rowcast.is_name(v_channel) and rowcast.open_channel(v_channel) is null then
        return null;
    end if;
    insert into public.realtime_messages (type, channel_name, event_name, payload)
    select tg_argv[2], v_channel, tg_op, jsonb_build_object(
        'schema', tg_table_schema, 'table', tg_table_name, 'operation', tg_op,
        'record', (
            select jsonb_object_agg(c.key, c.value) from jsonb_each(v_new) as c
            where v_columns is null or c.key = any (v_columns)
        ),
        'old_record', (
            select jsonb_object_agg(c.key, c.value) from jsonb_each(v_old) as c
            where v_columns is null or c.key = any (v_columns)
        )
    );
    return null;
end;
$$;

comment on function rowcast.publish_row() is
'Row trigger made by attach(); arguments: channel template, columns, type, missing_ok.';

-- Runs with the caller's rights: only a role that may create triggers on the table may attach it,
-- and only a role that may publish as the system may use the trigger function.
create or replace function rowcast.attach(
    "table" regclass,
    channel text,
    columns text[] default null,
    events text[] default '{insert,update,delete}',
    type text default 'message',
    missing_ok boolean default false
)
returns text
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_name constant text := 'rowcast_' || substr(md5(attach.channel), 1, 12);
    v_bad text;
begin
    select string_agg(e, ', ') into v_bad from unnest(attach.events) as e
    where lower(e) not in ('insert', 'update', 'delete');
    if v_bad is not null or coalesce(cardinality(attach.events), 0) = 0 then
        raise exception 'events "%" cannot be attached', coalesce(v_bad, '')
        using errcode = '22023', hint = 'Use insert, update, delete or some of them.';
    end if;
    if attach.type is null or attach.type not in ('message', 'broadcast') then
        raise exception 'message type "%" does not exist', attach.type
        using errcode = 'RCM02', hint = 'Use "message" (durable, in history) or "broadcast" (ephemeral).';
    end if;
    select string_agg(quote_ident(c.name), ', ') into v_bad
    from (
        select r.m[1] as name from regexp_matches(attach.channel, '\{([^{}]+)\}', 'g') as r (m)
        union
        select n.name from unnest(attach.columns) as n (name)
    ) as c
    where not exists (
        select from pg_catalog.pg_attribute as a
        where a.attrelid = attach."table" and a.attname = c.name and a.attnum > 0 and not a.attisdropped
    );
    if v_bad is not null then
        raise exception 'table % has no column %', attach."table", v_bad
        using errcode = '42703', hint = 'Name existing columns in the channel template and in columns.';
    end if;
    if rowcast.is_name(regexp_replace(attach.channel, '\{[^{}]+\}', 'x', 'g')) is not true then
        raise exception 'channel template "%" is not valid', attach.channel
        using errcode = 'RCN02', hint = 'Write a channel name with columns in braces, such as order:{id}.';
    end if;
    -- Otherwise the first change of a row would fail in production.
    if not attach.missing_ok
        and rowcast.open_channel(regexp_replace(attach.channel, '\{[^{}]+\}', 'x', 'g')) is null
    then
        raise exception 'there is no enabled channel for "%"', attach.channel
        using errcode = 'RCN01', hint = 'Insert a matching pattern into realtime_channels first, or attach with missing_ok => true.';
    end if;
    execute format(
        'create or replace trigger %I after %s on %s for each row execute function rowcast.publish_row(%L, %L, %L, %L)',
        v_name, (select string_agg(lower(e), ' or ') from unnest(attach.events) as e), attach."table",
        -- An argument of a trigger is a text and never NULL.
        attach.channel, coalesce(attach.columns::text, ''), attach.type, attach.missing_ok
    );
    return v_name;
end;
$$;

comment on function rowcast.attach(regclass, text, text[], text[], text, boolean) is
'Publishes row changes of a table to the channel named by a template such as order:{id}. Subscribers see the listed columns (all when NULL) whatever the table''s own row level security says. Returns the trigger''s name.';

-- Names the trigger as attach() did: by the template, so the name need not be remembered.
create or replace function rowcast.detach("table" regclass, channel text)
returns boolean
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_name constant text := 'rowcast_' || substr(md5(detach.channel), 1, 12);
begin
    if not exists (
        select from pg_catalog.pg_trigger as t where t.tgrelid = detach."table" and t.tgname = v_name
    ) then
        return false;
    end if;
    execute format('drop trigger %I on %s', v_name, detach."table");
    return true;
end;
$$;

comment on function rowcast.detach(regclass, text) is
'Ends what attach() with this template began; false when there was nothing.';
