-- Tenant claim: callers with a token of a tenant may listen to and publish on every enabled channel
-- below `tenant:{tenant}`, but not on those of other tenants. The tenant is the claim `tenant`,
-- which your issuer must set; never take it from user_metadata, which users can write themselves.
-- insert into realtime_channels (pattern) values ('tenant:*:**');
-- Allows: all users of a tenant, on all its channels. Callers without the claim are refused.
-- Cost: no lookup; the claims are read once per check.

drop policy if exists tenant_claim_subscribe on public.realtime_channels;
create policy tenant_claim_subscribe on public.realtime_channels
for select to authenticated
using (
    enabled
    and rowcast.segment(1) = 'tenant'
    and rowcast.segment(2) = (select rowcast.jwt() ->> 'tenant')
);

drop policy if exists tenant_claim_publish on public.realtime_messages;
create policy tenant_claim_publish on public.realtime_messages
for insert to authenticated
with check (
    rowcast.segment(channel_name, 1) = 'tenant'
    and rowcast.segment(channel_name, 2) = (select rowcast.jwt() ->> 'tenant')
);
