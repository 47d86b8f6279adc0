-- Endpoints: one for each address of a channel, kept in step with realtime_channels.webhook_urls.

-- What is wrong with an address. Where it leads is not asked here: a name may lead elsewhere
-- tomorrow, so the bridge looks at the address that it connects to.
create or replace function rowcast.webhook_fault(p_url text)
returns text
language sql
immutable
parallel safe
return case
    when p_url is null then 'is null'
    when octet_length(p_url) > 2048 then 'has more than 2048 bytes'
    when p_url !~* '^https?://' then 'does not begin with https:// or http://'
    when p_url ~ '[^\u0021-\u007E]|\\' then 'has characters that must be percent-encoded'
    when p_url ~ '^[^/]*//[^/?#]*@' then 'carries a user name or password'
    when p_url ~ '#' then 'has a fragment, which is never sent'
    when p_url !~ '^[^/]*//(\[[0-9a-fA-F:.]+\]|[^][/?:]+)(:[0-9]{1,5})?([/?]|$)'
        then 'has no valid host and port'
end;

comment on function rowcast.webhook_fault(text) is
'What is wrong with the form of a webhook URL; NULL when nothing is.';

-- Definer, because a role that may write a channel need not see the settings. A refused address is
-- not repeated where it may carry a password.
create or replace function rowcast.channels_webhooks()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_limit constant integer := (select s.webhook_limit from rowcast.settings as s);
    v_url text;
begin
    foreach v_url in array coalesce(new.webhook_urls, '{}') loop
        if rowcast.webhook_fault(v_url) is not null then
            raise exception 'webhook URL "%" of channel "%" %',
                left(regexp_replace(v_url, '//[^/]*@', '//…@'), 300), new.pattern, rowcast.webhook_fault(v_url)
            using errcode = 'RCW01',
            hint = 'Write it like https://example.com/webhook: http or https, no user name, at most 2048 bytes of ASCII.';
        end if;
    end loop;
    if cardinality(new.webhook_urls) > v_limit then
        raise exception 'channel "%" has % webhook URLs, and the limit is %', new.pattern, cardinality(new.webhook_urls), v_limit
        using errcode = 'RCW02', hint = 'Give fewer, or raise webhook_limit in rowcast.settings.';
    end if;
    return new;
end;
$$;

comment on function rowcast.channels_webhooks() is
'Trigger of realtime_channels: refuses webhook URLs with RCW01 and RCW02.';

create or replace trigger realtime_channels_20_webhooks
before insert or update of webhook_urls on public.realtime_channels
for each row execute function rowcast.channels_webhooks();

-- 256 random bits without any extension: a UUID has 122, and the hash of three is even.
create or replace function rowcast.new_secret()
returns text
language sql
volatile
parallel safe
return 'whsec_' || encode(
    sha256(
        uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
    ), 'base64'
);

comment on function rowcast.new_secret() is
'A new signing secret as Standard Webhooks writes it: whsec_ and 32 random bytes.';

-- After the row, because an insert that ON CONFLICT leaves out must leave no endpoint. What
-- stays in the list keeps its secret; what leaves it is retired, and what waits for it is
-- cancelled. The signal tells bridges at once that there is something else to look after.
create or replace function rowcast.channels_endpoints()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_urls constant text[] := case when tg_op <> 'DELETE' then coalesce(new.webhook_urls, '{}') end;
    v_endpoint uuid;
begin
    if tg_op = 'UPDATE' and new.id = old.id and new.webhook_urls is not distinct from old.webhook_urls
        or tg_op = 'INSERT' and v_urls = '{}'
    then
        return null;
    end if;
    if tg_op <> 'INSERT' then
        for v_endpoint in
            update rowcast.endpoint as e set state = 'retired', reason = 'removed', changed_at = now()
            where e.channel_id = old.id and e.state <> 'retired'
            and (tg_op = 'DELETE' or new.id <> old.id or e.url <> all (v_urls))
            returning e.id
        loop
            perform rowcast.cancel_deliveries(v_endpoint, 'removed');
        end loop;
    end if;
    if tg_op <> 'DELETE' then
        insert into rowcast.endpoint (channel_id, url, secret)
        select new.id, u.url, rowcast.new_secret()
        from unnest(v_urls) with ordinality as u (url, n) group by u.url order by min(u.n)
        on conflict (channel_id, url) where state <> 'retired' do nothing;
    end if;
    insert into rowcast.signal (kind, body) values ('webhooks', '{}');
    return null;
end;
$$;

comment on function rowcast.channels_endpoints() is
'Trigger of realtime_channels: makes an endpoint with a secret for each new URL, retires those of removed ones.';

create or replace trigger realtime_channels_80_endpoints
after insert or update or delete on public.realtime_channels
for each row execute function rowcast.channels_endpoints();

-- From the failure on no message was written for it, so nothing piled up; what was cancelled can
-- be redelivered.
create or replace function rowcast.enable_endpoint(p_endpoint_id uuid)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update rowcast.endpoint as e
    set state = 'active', reason = null, room = 4, failures = 0, failing_since = null,
        pause_until = '-infinity', changed_at = now()
    where e.id = p_endpoint_id and e.state = 'disabled';
    if found then
        insert into rowcast.signal (kind, body) values ('webhooks', '{}');
    end if;
    return found;
end;
$$;

comment on function rowcast.enable_endpoint(uuid) is
'Lets a disabled endpoint receive again; false when there is no such disabled endpoint.';

-- The old secret goes on signing beside the new one for a while, so that receivers can change
-- when it suits them and no request is ever one that they cannot verify.
create or replace function rowcast.rotate_secret(endpoint uuid)
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_secret text;
begin
    update rowcast.endpoint as e
    set secret = rowcast.new_secret(), previous_secret = e.secret,
        previous_until = clock_timestamp() + (select s.webhook_secret_grace from rowcast.settings as s),
        changed_at = now()
    where e.id = rotate_secret.endpoint and e.state <> 'retired'
    returning e.secret into v_secret;
    if v_secret is null then
        raise exception 'there is no endpoint %', rotate_secret.endpoint
        using errcode = 'RCW06', hint = 'List them with `rowcast webhooks list`.';
    end if;
    return v_secret;
end;
$$;

comment on function rowcast.rotate_secret(uuid) is
'Gives an endpoint a new signing secret and returns it; the old one signs too for webhook_secret_grace. Raises RCW06.';
