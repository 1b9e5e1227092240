-- Takes a lease, renews it, or gives it back.
--
-- KEYS[1]  the lease: the name of its holder
-- ARGV[1]  who asks
-- ARGV[2]  milliseconds that it is to last from now on; 0: the holder gives it back
--
-- Answers whether it is the asker's now.

local key, holder, lasts = KEYS[1], ARGV[1], tonumber(ARGV[2])
local held = redis.pcall('GET', key)
if type(held) == 'table' then
  if not string.find(held.err, 'WRONGTYPE', 1, true) then
    return held
  end
  held = nil -- somebody has put something else there
end
if held and held ~= holder and redis.call('PTTL', key) > 0 then -- what never ends is nobody's
  return 0
end
if lasts > 0 then
  redis.call('SET', key, holder, 'PX', lasts)
  return 1
end
redis.call('DEL', key)
return 0
