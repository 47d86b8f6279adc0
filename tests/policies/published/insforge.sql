-- Policies for realtime.channels and realtime.messages in the manner of InsForge's documentation.

ALTER TABLE realtime.channels ENABLE ROW LEVEL SECURITY;
ALTER TABLE realtime.messages ENABLE ROW LEVEL SECURITY;

-- Everybody with a token may listen to the lobby.
CREATE POLICY "lobby" ON realtime.channels FOR SELECT TO authenticated
USING (pattern = 'lobby');

CREATE POLICY "users_subscribe_own_orders" ON realtime.channels FOR SELECT TO authenticated
USING (
  pattern = 'order:%'
  AND EXISTS (
    SELECT 1 FROM orders
    WHERE id = NULLIF(split_part(realtime.channel_name(), ':', 2), '')::uuid
    AND user_id = auth.uid()
  )
);

CREATE POLICY "members_subscribe_chat" ON realtime.channels FOR SELECT TO authenticated
USING (
  realtime.channels.pattern IN ('chat:%')
  AND EXISTS (
    SELECT 1 FROM chat_members
    WHERE user_id = auth.uid()
    AND room_id = (NULLIF(split_part(realtime.channel_name(), ':', 2), ''))::uuid
  )
);

CREATE POLICY "members_publish_chat" ON realtime.messages FOR INSERT TO authenticated
WITH CHECK (
  channel_name LIKE 'chat:%'
  AND sender_id = auth.uid()
  AND EXISTS (
    SELECT 1 FROM chat_members
    WHERE user_id = auth.uid()
    AND room_id = NULLIF(split_part(realtime.channel_name(), ':', 2), '')::uuid
  )
);

CREATE POLICY "anybody_says_hello" ON realtime.messages FOR INSERT TO anon, authenticated
WITH CHECK (messages.event_name = 'hello' AND realtime.channel_name() = 'lobby');

CREATE POLICY "sender_is_a_friend" ON realtime.messages FOR INSERT TO authenticated
WITH CHECK (EXISTS (SELECT 1 FROM friends f WHERE f.user_id = messages.sender_id));

CREATE POLICY "history_by_channel" ON realtime.messages FOR SELECT TO authenticated
USING (EXISTS (SELECT 1 FROM realtime.channels c WHERE c.id = messages.channel_id));
