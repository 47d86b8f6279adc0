-- The caller, in the terms of PostgREST and Supabase, so that people's policies work as they
-- are. A transaction-local setting reads back as '' after commit, never as NULL, hence nullif
-- everywhere. One-line bodies are inlined and bound at creation: no search_path can move them.

-- The verified claims of the token.
create or replace function rowcast.jwt()
returns jsonb
language sql
stable
parallel safe
return nullif(current_setting('request.jwt.claims', true), '')::jsonb;

comment on function rowcast.jwt() is 'Claims of the caller as jsonb, NULL without a token.';

-- The subject as text: third-party subjects are not UUIDs.
create or replace function rowcast.user_id()
returns text
language sql
stable
parallel safe
return coalesce(
    nullif(current_setting('request.jwt.claim.sub', true), ''),
    rowcast.jwt() ->> 'sub'
);

comment on function rowcast.user_id() is 'The `sub` claim as text, NULL for anonymous callers.';

-- The subject as uuid. A subject that is not a uuid gives NULL: an error here would poison every
-- policy of the statement, also those for other roles.
create or replace function rowcast.uid()
returns uuid
language sql
stable
parallel safe
return case
    when rowcast.user_id() ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$'
        then rowcast.user_id()::uuid
end;

comment on function rowcast.uid() is 'The `sub` claim as uuid, NULL when it is none.';

-- The role claim, which PostgREST also makes the current role.
create or replace function rowcast.role()
returns text
language sql
stable
parallel safe
return coalesce(
    nullif(current_setting('request.jwt.claim.role', true), ''),
    rowcast.jwt() ->> 'role'
);

comment on function rowcast.role() is 'The `role` claim, NULL without a token.';

-- The address, as far as the issuer puts one into its tokens.
create or replace function rowcast.email()
returns text
language sql
stable
parallel safe
return coalesce(
    nullif(current_setting('request.jwt.claim.email', true), ''),
    rowcast.jwt() ->> 'email'
);

comment on function rowcast.email() is 'The `email` claim, NULL when there is none.';

-- Names are tested in policies for one channel at a time; the bridge sets the name before it asks.
create or replace function rowcast.channel_name()
returns text
language sql
stable
parallel safe
return nullif(current_setting('rowcast.channel_name', true), '');

comment on function rowcast.channel_name() is
'The name that is being asked for. For policies on realtime_channels only: in a policy on realtime_messages use the row''s channel_name.';

-- Sets the caller for one statement's worth of policies: claims, their legacy names, the channel.
-- All local to the transaction. The role is set first and for every single question, because a
-- policy function may have changed it while the question before was answered.
create or replace function rowcast.impersonate(p_role text, p_claims text, p_channel text)
returns void
language sql
volatile
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    select
        set_config('role', p_role, true),
        set_config('request.jwt.claims', coalesce(p_claims, ''), true),
        set_config('request.jwt.claim.sub', coalesce(p_claims::jsonb ->> 'sub', ''), true),
        set_config('request.jwt.claim.role', coalesce(p_claims::jsonb ->> 'role', ''), true),
        set_config('rowcast.channel_name', coalesce(p_channel, ''), true);
end;

comment on function rowcast.impersonate(text, text, text) is
'Sets role, claims and channel for the rest of the transaction. Role must be granted to the session user.';
