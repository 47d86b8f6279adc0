-- Tenant claim: whoever has a token of a tenant may listen to and publish on every enabled channel
-- below `tenant:{tenant}`, and on no other tenant's. The tenant is the claim `tenant`, which your
-- issuer must set; never take it from user_metadata, which users write themselves.
-- insert into realtime_channels (pattern) values ('tenant:*:**');
-- Lets through: all colleagues, to all channels of the tenant. Without the claim nobody.
-- Cost: nothing to look up; the claims are read once per question.

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
