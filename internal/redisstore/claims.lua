-- Writes what is known of one event, unless somebody else publishes it or has: see
-- package claim.
--
-- KEYS[1]  the event: "p content attempt" while an attempt is under way, "a content"
--          when it was published, anything else when it is free
-- ARGV[1]  what to write
-- ARGV[2]  what this attempt has written before, which does not keep it from writing
-- ARGV[3]  milliseconds to live
--
-- Answers what stood there, '' for nothing.

local have = redis.pcall('GET', KEYS[1])
if type(have) == 'table' then
  if not string.find(have.err, 'WRONGTYPE', 1, true) then
    return have
  end
  have = '' -- somebody has put something else there
end
have = have or ''
if have == ARGV[2] or not string.match(have, '^[pa] ') then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
end
return have
