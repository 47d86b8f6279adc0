-- Tables on which policies depend, attached: each change has the right people asked again.

-- One signal a statement, with what is known of it. A column that was renamed since reads as
-- NULL, which means every user: the statement of the user must not fail for it.
--
-- Definer: a role that writes the table need not be allowed to signal.
create or replace function rowcast.recheck_rows()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_columns constant text[] := nullif(tg_argv[2], '')::text[];
    v_rows jsonb[];
begin
    if tg_op = 'INSERT' then
        select array_agg(to_jsonb(n)) into v_rows from rowcast_new as n;
    elsif tg_op = 'DELETE' then
        select array_agg(to_jsonb(o)) into v_rows from rowcast_old as o;
    elsif tg_op = 'UPDATE' then
        -- Only where a relevant column has another value now; for the old and the new user or
        -- channel.
        select array_agg(c.r) into v_rows
        from (
            (
                select rowcast.recheck_columns(to_jsonb(o), v_columns) as r from rowcast_old as o
                except
                select rowcast.recheck_columns(to_jsonb(n), v_columns) from rowcast_new as n
            )
            union all
            (
                select rowcast.recheck_columns(to_jsonb(n), v_columns) from rowcast_new as n
                except
                select rowcast.recheck_columns(to_jsonb(o), v_columns) from rowcast_old as o
            )
        ) as c;
    else
        v_rows := '{"{}"}';
    end if;
    perform rowcast.recheck_signal(array(
        select distinct jsonb_build_object(
            'user', nullif(r ->> tg_argv[0], ''),
            'channel', rowcast.recheck_channel(nullif(tg_argv[1], ''), r)
        )
        from unnest(v_rows) as r
    ));
    return null;
end;
$$;

comment on function rowcast.recheck_rows() is
'Statement trigger made by recheck_on_change(); arguments: user column, channel template, columns.';

-- Runs with the caller's rights: a role that may create triggers on the table may attach it. Four
-- triggers, because a transition table belongs to one kind of statement.
create or replace function rowcast.recheck_on_change(
    "table" regclass,
    user_column text default null,
    channel text default null,
    columns text[] default null
)
returns void
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_named text[];
    v_bad text;
    v_event text;
begin
    select array_agg(distinct c.name) into v_named
    from (
        select r.m[1] as name from regexp_matches(recheck_on_change.channel, '\{([^{}]+)\}', 'g') as r (m)
        union all
        select recheck_on_change.user_column
        union all
        select n.name from unnest(recheck_on_change.columns) as n (name)
    ) as c
    where c.name is not null;
    select string_agg(quote_ident(c.name), ', ') into v_bad from unnest(v_named) as c (name)
    where not exists (
        select from pg_catalog.pg_attribute as a
        where a.attrelid = recheck_on_change."table" and a.attname = c.name and a.attnum > 0 and not a.attisdropped
    );
    if v_bad is not null then
        raise exception 'table % has no column %', recheck_on_change."table", v_bad
        using errcode = '42703', hint = 'Name existing columns in user_column, in the channel template and in columns.';
    end if;
    if rowcast.is_name(regexp_replace(recheck_on_change.channel, '\{[^{}]+\}', 'x', 'g')) is false then
        raise exception 'channel template "%" is not valid', recheck_on_change.channel
        using errcode = 'RCN02', hint = 'Write a channel name with columns in braces, such as chat:{room}.';
    end if;
    foreach v_event in array array['insert', 'update', 'delete', 'truncate'] loop
        execute format(
            'create or replace trigger %I after %s on %s %s'
            ' for each statement execute function rowcast.recheck_rows(%L, %L, %L)',
            'rowcast_recheck_' || v_event, v_event, recheck_on_change."table",
            case v_event
                when 'insert' then 'referencing new table as rowcast_new'
                when 'update' then 'referencing old table as rowcast_old new table as rowcast_new'
                when 'delete' then 'referencing old table as rowcast_old'
                else ''
            end,
            -- An argument of a trigger is a text and never NULL.
            coalesce(recheck_on_change.user_column, ''), coalesce(recheck_on_change.channel, ''),
            case when recheck_on_change.columns is null then '' else v_named::text end
        );
    end loop;
end;
$$;

comment on function rowcast.recheck_on_change(regclass, text, text, text[]) is
'Has the policies asked again whenever the table changes: for the users in user_column, for the channels of a template such as chat:{room}, for everything where neither is known. With columns, an update counts only when one of them changes.';

-- Ends what recheck_on_change() began.
create or replace function rowcast.recheck_detach("table" regclass)
returns boolean
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_name text;
    v_found boolean := false;
begin
    for v_name in
        select t.tgname from pg_catalog.pg_trigger as t
        where t.tgrelid = recheck_detach."table" and t.tgfoid = 'rowcast.recheck_rows()'::regprocedure
    loop
        execute format('drop trigger %I on %s', v_name, recheck_detach."table");
        v_found := true;
    end loop;
    return v_found;
end;
$$;

comment on function rowcast.recheck_detach(regclass) is
'Ends what recheck_on_change() began; false when there was nothing.';
