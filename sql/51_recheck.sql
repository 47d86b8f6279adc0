-- Access that follows the data: telling bridges whose subscriptions to ask about again.
--
-- A signal commits together with what it is about, and bridges read it with the messages of the
-- same moment. Whatever is published after the revoking commit is read with it or later, so a
-- bridge that first asks again does not deliver it to clients that lost access.

-- One signal, and never a long one: it is read by every bridge. NULL stands for every user, or for
-- every channel. Over 100 pairs it says only which channels, or only which users, or everything.
create or replace function rowcast.recheck_signal(p_pairs jsonb[])
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_most constant integer := 100;
    v_of jsonb := to_jsonb(p_pairs);
begin
    if cardinality(p_pairs) = 0 or p_pairs is null then
        return;
    elsif cardinality(p_pairs) > v_most then
        select jsonb_agg(distinct jsonb_build_object('channel', p -> 'channel')) into v_of
        from unnest(p_pairs) as p;
        if jsonb_array_length(v_of) > v_most then
            select jsonb_agg(distinct jsonb_build_object('user', p -> 'user')) into v_of
            from unnest(p_pairs) as p;
        end if;
        if jsonb_array_length(v_of) > v_most then
            v_of := '[{}]';
        end if;
    end if;
    insert into rowcast.signal (kind, body) values ('recheck', jsonb_build_object('of', v_of));
end;
$$;

comment on function rowcast.recheck_signal(jsonb[]) is
'Writes one signal for objects with user and channel, each NULL for all; more than 100 are coarsened.';

-- For what triggers cannot see: a policy that was changed, a table in another database.
create or replace function rowcast.recheck(user_id text default null, channel text default null)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if rowcast.is_pattern(recheck.channel) is false then
        raise exception 'channel "%" is neither a name nor a pattern', left(recheck.channel, 300)
        using errcode = 'RCN03', hint = 'Give a channel name, a pattern such as chat:*, or NULL for all.';
    end if;
    perform rowcast.recheck_signal(array[
        jsonb_build_object('user', recheck.user_id, 'channel', recheck.channel)
    ]);
end;
$$;

comment on function rowcast.recheck(text, text) is
'Has the policies asked again for subscriptions: of this user, to this name or to names of this pattern, NULL for all. A client that lost access is told and unsubscribed.';

-- A kicked user may come back while their token is valid: make policies refuse them first.
create or replace function rowcast.kick(user_id text, reconnect boolean default false)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if kick.user_id is null then
        raise exception 'user_id is NULL' using errcode = '22004', hint = 'Give the sub of the tokens to close.';
    end if;
    insert into rowcast.signal (kind, body) values (
        'kick', jsonb_build_object('user', kick.user_id, 'reconnect', coalesce(kick.reconnect, false))
    );
end;
$$;

comment on function rowcast.kick(text, boolean) is
'Closes all sessions of a user at commit: with 3504 (do not come back), or with 3004 when reconnect (come back with a new token).';

-- Fills a template such as chat:{room} from a row; NULL where that makes no channel name. A
-- value with ":" or "*" therefore widens the question instead of asking about another channel.
create or replace function rowcast.recheck_channel(p_template text, p_row jsonb)
returns text
language sql
immutable
parallel safe
begin atomic
    select case when rowcast.is_name(f.name) then f.name end
    from (
        select
            case
                when bool_and(v.value is not null and position(':' in v.value) = 0) is not false
                    then coalesce(string_agg(r.m[1] || v.value, '' order by r.n), '')
                        || regexp_replace(p_template, '^.*\{[^{}]+\}', '')
            end as name
        from regexp_matches(p_template, '(.*?)\{([^{}]+)\}', 'g') with ordinality as r (m, n),
            lateral (select p_row ->> r.m[2] as value) as v
    ) as f;
end;

comment on function rowcast.recheck_channel(text, jsonb) is
'The channel name that a template makes of a row, NULL when it makes none.';

-- What of a row matters: the listed columns, or all of it.
create or replace function rowcast.recheck_columns(p_row jsonb, p_columns text[])
returns jsonb
language sql
immutable
parallel safe
begin atomic
    select case
        when p_columns is null then p_row
        else (
            select jsonb_object_agg(c.key, c.value) from jsonb_each(p_row) as c
            where c.key = any(p_columns)
        )
    end;
end;

comment on function rowcast.recheck_columns(jsonb, text[]) is
'The row reduced to the listed columns, the whole row when NULL.';

-- A row that changes, comes or goes decides anew for all names that its pattern matches, also
-- where another row governed them before.
create or replace function rowcast.channels_changed()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_most constant integer := 100;
    v_patterns text[];
begin
    if tg_op = 'INSERT' then
        select array_agg(n.pattern) into v_patterns from rowcast_new as n;
    elsif tg_op = 'DELETE' then
        select array_agg(o.pattern) into v_patterns from rowcast_old as o;
    elsif tg_op = 'UPDATE' then
        select array_agg(c.pattern) into v_patterns
        from (select n.pattern from rowcast_new as n union select o.pattern from rowcast_old as o) as c;
    else
        v_patterns := '{**}';
    end if;
    if v_patterns is not null then
        insert into rowcast.signal (kind, body) values (
            'channel', jsonb_build_object(
                'patterns', case when cardinality(v_patterns) > v_most then '{**}'::text[] else v_patterns end
            )
        );
    end if;
    return null;
end;
$$;

comment on function rowcast.channels_changed() is
'Statement trigger of realtime_channels: signals the patterns of changed rows, "**" for very many.';

create or replace trigger realtime_channels_50_inserted
after insert on public.realtime_channels
referencing new table as rowcast_new
for each statement execute function rowcast.channels_changed();

create or replace trigger realtime_channels_50_updated
after update on public.realtime_channels
referencing old table as rowcast_old new table as rowcast_new
for each statement execute function rowcast.channels_changed();

create or replace trigger realtime_channels_50_deleted
after delete on public.realtime_channels
referencing old table as rowcast_old
for each statement execute function rowcast.channels_changed();

create or replace trigger realtime_channels_50_truncated
after truncate on public.realtime_channels
for each statement execute function rowcast.channels_changed();
