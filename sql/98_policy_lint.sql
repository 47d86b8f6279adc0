-- All findings of the catalogue about policies.

-- What is wrong with the policies of this database, for people who have only psql. With the
-- caller's rights: it reads the catalogues, which everybody may. Without JIT, which takes seconds
-- to compile what then runs for milliseconds.
create or replace function rowcast.policy_lint()
returns table (code text, level text, object text, message text, hint text)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
set jit = off
begin atomic
    select l.*
    from (
        select * from rowcast.policy_lint_expressions()
        union all
        select * from rowcast.policy_lint_commands()
        union all
        select * from rowcast.policy_lint_tables()
        union all
        select * from rowcast.policy_lint_code()
    ) as l (code, level, object, message, hint)
    order by array_position('{error,warning,info}', l.level), l.code, l.object, l.message;
end;

comment on function rowcast.policy_lint() is
'What is wrong with the policies that callers meet: code, level (error, warning, info), object, message, hint. `rowcast policy lint --explain CODE` explains a code.';
